"""Eight virtual CPU devices for every test, and a shared compilation cache.

With ``JAXALIGN_TEST_PLATFORM=gpu`` the tests run on the GPUs that are there instead; those that need more devices are
then skipped.
"""

import os
from pathlib import Path

import jax
import pytest

_PLATFORM = os.environ.get("JAXALIGN_TEST_PLATFORM", "cpu")
# XLA's CPU scheduler may run independent collectives of one program at the same time; with fewer cores than virtual
# devices they then wait for each other for ever. In program order they do not. (Inherited by the tests' processes.)
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
if _IN_ORDER not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_IN_ORDER}".strip()
if _PLATFORM == "cpu":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
# What the tolerances are written for; accelerators' faster float32 products have 10 to 16 bits.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """On accelerators, a test whose mesh asks for more devices than there are is skipped, not failed."""
    from jaxalign.errors import InputError

    try:
        return (yield)
    except InputError as error:
        if _PLATFORM != "cpu" and str(error).startswith("--mesh") and "devices" in str(error):
            pytest.skip(str(error))
        raise
