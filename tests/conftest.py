"""Eight virtual CPU devices for every test, a compiler in a hurry, and a shared compilation cache.

With ``JAXALIGN_TEST_PLATFORM=gpu`` the tests run on the GPUs that are there instead; those that need more devices are
then skipped. With ``JAXALIGN_TEST_COMPILER=full`` programs are compiled as users' are; that is the default there.
"""

import os
from pathlib import Path

import jax
import pytest

_PLATFORM = os.environ.get("JAXALIGN_TEST_PLATFORM", "cpu")
# XLA's CPU scheduler may run independent collectives of one program at the same time; with fewer cores than virtual
# devices they then wait for each other for ever. In program order they do not. (Inherited by the tests' processes.)
_XLA_FLAGS = ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]
if os.environ.get("JAXALIGN_TEST_COMPILER", "quick" if _PLATFORM == "cpu" else "full") == "quick":
    # Most of the suite's time would be LLVM's, on programs that then run for milliseconds.
    _XLA_FLAGS += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if jax.__version_info__ < (0, 11):  # a flag that jaxlib does not know ends the process
        _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _XLA_FLAGS:
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
if _PLATFORM == "cpu":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
# What the tolerances are written for; accelerators' faster float32 products have 10 to 16 bits.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache")),
)
# Small ones too: many tests trace the same programs anew.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # in the tests' processes too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module", autouse=True)
def few_programs_in_memory():
    """Drop compiled programs before they are too many for one process.

    Each takes some memory maps, of which Linux allows a process 65530; beyond them XLA ends in a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


def pytest_collection_modifyitems(items):
    """The files of few long tests first: at the end one worker would wait for the other."""
    items.sort(key=lambda item: item.path.name not in ("test_readme.py", "test_resume.py"))


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
