"""Eight virtual CPU devices for every test, warnings of ours as errors, and a shared compilation cache."""

import os
from pathlib import Path

import jax

# XLA's CPU scheduler may run independent collectives of one program at the same time; with fewer cores than virtual
# devices they then wait for each other for ever. In program order they do not. (Inherited by the tests' processes.)
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
if _IN_ORDER not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_IN_ORDER}".strip()
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
