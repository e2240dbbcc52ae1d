"""PPO over prompts that are at hand: models, rollouts, updates, checkpoints, put together."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import sharding, training
from jaxalign.data import Prompt
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes._actor_critic import make_actor_critic
from jaxalign.recipes._handover import taken
from jaxalign.recipes._objective import Params
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.recipes._ppo_program import make_ppo_program
from jaxalign.recipes._ppo_update import make_rollout_pass
from jaxalign.recipes._resume import open_run
from jaxalign.recipes._rollout import RolloutSource, Texts
from jaxalign.recipes._shared import run_mesh
from jaxalign.sampling import TextReward

__all__ = ["PPOResult", "check_rollout", "fit_ppo"]

SHOWN = ("objective/scores", "objective/kl", "objective/kl_coefficient")


@dataclass(frozen=True)
class PPOResult:
    """A policy trained with PPO and how its training ended; as ``FitResult``."""

    config: ModelConfig
    params: Params
    """The whole policy."""
    step: int
    """Updates (rollouts trained on)."""
    metrics: dict[str, float]
    interrupted: bool
    lora_config: ModelConfig | None = None
    lora: Params | None = None


def check_rollout(config: PPOFitConfig, mesh: Mesh) -> None:
    """Refuse a ``batch_size`` that does not divide over the mesh; raises ``InputError``."""
    shards = sharding.data_shards(mesh)
    if config.batch_size % (config.parts * shards):
        raise InputError(
            f"--batch-size: {config.batch_size} episodes do not divide into --minibatches {config.minibatches} x "
            f"--accumulation {config.accumulation} parts for {shards} devices (--mesh)"
        )


def fit_ppo(
    model_config: ModelConfig,
    params: Params | Callable[[], Params],
    prompts: Sequence[Prompt],
    reward: TextReward | RewardModel,
    config: PPOFitConfig,
    *,
    decode: Callable[[list[int]], str],
    stop_tokens: Sequence[int],
    critic: RewardModel | Callable[[], RewardModel] | None = None,
    reference: Params | Callable[[], Params] | None = None,
    directory: str | Path | None = None,
    pad_token: int = 0,
    identity: dict[str, Any] | None = None,
    evaluate: Callable[[int, Params], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    report: Callable[[int, int, str], None] | None = None,
    title: str = "ppo",
) -> PPOResult:
    """Train a policy to raise a reward, held near where it started by a KL penalty.

        maximise E_{y ~ pi(. | x)} [r(x, y)] - beta KL(pi || ref)

    (Ziegler et al. 2019, arXiv 1909.08593; Schulman et al. 2017, arXiv 1707.06347.) One update: sample ``batch_size``
    responses, rate them, give every token its share, take ``ppo_epochs`` x ``minibatches`` optimizer steps.

    Args:
      model_config, params: the policy to start from, usually an SFT model; ``params`` is copied, not consumed. A
        function that returns them, or ``critic`` or ``reference``, is called once, as in ``fit``.
      prompts: what is sampled from, in an order that is a function of the seed.
      reward: any ``f(prompts, completions) -> scores``, called on the host with each prompt's ``content`` and the
        decoded completion, on several processes by the first alone; or a reward model with the policy's tokenizer,
        which is computed on the devices.
      config: the run.
      decode: ids -> text, for a text reward.
      stop_tokens: ids that end a response (the EOS).
      critic: what the critic starts as; None = the reward where that is a model, else the policy with a head of zeros.
      reference: the reference's parameters; None = the policy as it starts.
      directory: where checkpoints and metrics.jsonl go; a run that is there continues. None keeps nothing.
      pad_token: id written into padding; no result depends on it.
      identity: further values that a continued run must share with the one it continues.
      evaluate: ``(update, whole policy's parameters, in one stack) -> values``, written beside the metrics; before the
        first update, every ``evaluate_every`` updates and after the last.
      evaluate_every: updates between evaluations; 0 = only at the beginning and the end.
      report: called as ``report(done, total, note)`` after every update, instead of a progress bar.
      title: the word before the progress bar.

    Raises:
      InputError: a setting that does not fit models or data; a reward that raises, has the wrong length or is not
        finite (it names the update and the prompt; the state is saved, the same call continues there).
      TrainingError: a loss or gradient that is not finite.
    """
    if config.overlap_rewards and isinstance(reward, RewardModel):
        raise InputError("--overlap-rewards: a reward model is computed on the devices; there is nothing to overlap")
    mesh = run_mesh(config)
    check_rollout(config, mesh)  # before anyone is paid to rate a rollout
    model_config = model_config.replace(compute_dtype=config.dtype, remat=config.remat, attention=config.attention)
    reward_model = reward if isinstance(reward, RewardModel) else None
    actor_critic, trainable, layout, frozen = make_actor_critic(
        model_config,
        taken(params),
        config,
        mesh,
        critic=reward_model if critic is None else taken(critic),
        reward=reward_model,
        reference=None if reference is None else taken(reference),
    )
    text_reward = None if isinstance(reward, RewardModel) else reward
    total = config.max_steps
    if total is None:
        total = -(-len(prompts) * config.epochs // config.prompts_per_rollout)
    source = RolloutSource(
        actor_critic.policy.config,
        frozen,
        prompts,
        Texts(decode, tuple(stop_tokens), text_reward),
        make_rollout_pass(actor_critic, config, mesh),
        config,
        mesh,
        pad_token=pad_token,
        # A run whose rate falls over its length cannot be made longer: nothing comes after its last rollout.
        last=None if config.optimizer.schedule == "constant" else total - 1,
    )
    program = make_ppo_program(actor_critic, trainable, layout, config, mesh, total)
    step, optimizer, extra = program.step, program.optimizer, program.extra
    in_update = {name: frozen[name] for name in program.frozen_layout}
    folder = None if directory is None else Path(directory)
    checkpoints, restored, state = None, None, None
    if folder is not None:
        saved = {**extra, "ahead": source.saved_shapes()} if config.overlap_rewards else extra
        checkpoints, restored = open_run(
            folder,
            config,
            identity,
            training.state_shapes(trainable, optimizer, dtype=config.parameter_dtype, extra=saved),
            training.state_shardings(trainable, optimizer, mesh=mesh, shardings=layout, extra=saved),
        )
        if restored is not None:
            state = restored.state
            if config.overlap_rewards:
                own = dict(state.extra)
                source.restore(own.pop("ahead"))
                state = replace(state, extra=own)
    if state is None:
        state = training.create_state(
            trainable,
            optimizer,
            jax.random.key(config.seed),
            mesh=mesh,
            shardings=layout,
            dtype=config.parameter_dtype,
            extra=extra,
        )
    del trainable  # what the state was made of would lie beside it until the run ends

    def whole(state: training.TrainState) -> Params:
        return sharding.settle(actor_critic.policy.whole(state.params["policy"])[1])

    def observe(index: int, values: Any) -> None:
        if report is not None:
            report(index, total, f"reward {values['objective/scores']:.3g}, KL {values['objective/kl']:.3g}")

    writer = None
    if folder is not None:
        writer = training.MetricWriter(
            folder / "metrics.jsonl",
            step=restored.step if restored else 0,
            tensorboard=folder / "tensorboard" if config.tensorboard else None,
        )
    start = restored.step if restored else 0
    spikes = None
    if config.loss_spike is not None:
        history = [] if folder is None else training.read_losses(folder / "metrics.jsonl", start)
        spikes = training.LossSpikes(config.loss_spike, history)
    try:
        bar = training.Progress(total, start=start, title=title, every=config.log_every, shown=SHOWN)
        with contextlib.nullcontext() if report else bar as shown:
            result = training.run_loop(
                step,
                state,
                source,
                max_steps=total,
                frozen=in_update,
                position=restored.position if restored else 0,
                save_every=config.save_every,
                checkpoints=checkpoints,
                writer=writer,
                progress=shown,
                evaluate=None if evaluate is None else lambda index, state: evaluate(index, whole(state)),
                evaluate_every=evaluate_every,
                observe=observe,
                identify=lambda batch: sharding.to_host(batch.record_ids)[:, 0].tolist(),
                to_save=source.to_save if config.overlap_rewards else None,
                evaluation_due=restored is not None and restored.evaluation_due,
                spikes=spikes,
                limits=config.limits,
                debug=config.debug,
            )
    finally:
        source.close()
        if writer:
            writer.close()
        if checkpoints:
            checkpoints.close()
    whole_config, policy = actor_critic.policy.whole(result.state.params["policy"])
    return PPOResult(
        config=whole_config,
        params=policy,
        step=result.step,
        metrics=result.metrics or (restored.metrics if restored else {}),
        interrupted=result.interrupted,
        lora_config=actor_critic.policy.config if config.lora else None,
        lora=result.state.params["policy"] if config.lora else None,
    )
