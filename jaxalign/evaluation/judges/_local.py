"""What judges that are local models share: the prompt's tokens, the weights' name, the largest text."""

import hashlib
from typing import Any

from jaxalign import data, training
from jaxalign.data import Encoder
from jaxalign.evaluation._comparison import Comparison
from jaxalign.evaluation.judges._prompts import AnswerForm, JudgePrompts, load_prompts
from jaxalign.models import ModelConfig

__all__ = ["LocalModel"]


class LocalModel:
    """A language model in memory with its tokenizer, and what it is asked.

    Where the tokenizer has a chat template (or ``chat`` says so) the question is a person's turn, else plain text.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Any,
        prompts: JudgePrompts | str,
        *,
        ties: bool,
        form: AnswerForm,
        chat: bool | None,
    ) -> None:
        self.config, self.params = config, params
        self.encoder = Encoder(tokenizer)
        self.prompts = prompts if isinstance(prompts, JudgePrompts) else load_prompts(prompts)
        self.chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat
        self._ties, self._form = ties, form
        self._identity = ""

    def prompt(self, comparison: Comparison, opening: str = "") -> str | list[dict[str, str]]:
        """The question, with the answer's first words where it is to begin with some."""
        question = self.prompts.render(comparison, ties=self._ties, form=self._form)
        if not self.chat:
            return question + "\n\n" + opening
        turns = [{"role": "user", "content": question}]
        if self.prompts.system:
            turns = [{"role": "system", "content": self.prompts.system}, *turns]
        return [*turns, {"role": "assistant", "content": opening}] if opening else turns

    def tokens(self, comparison: Comparison, place: str) -> list[int]:
        """The question's ids, up to where the answer begins."""
        return data.prompt_tokens({"prompt": self.prompt(comparison)}, self.encoder, place=place)

    @property
    def identity(self) -> str:
        """Weights, compute type, layout and prompts: another model of the same name gives other verdicts."""
        if not self._identity:
            sums = repr(sorted(training.fingerprint(self.params).items()))
            self._identity = hashlib.sha256(sums.encode()).hexdigest()[:16]
        return (
            f"weights={self._identity} dtype={self.config.compute_dtype} chat={self.chat} "
            f"prompts={self.prompts.fingerprint()}"
        )
