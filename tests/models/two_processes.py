"""A program for test_processes.py: ``two_processes.py FOLDER PORT PROCESS``: one of two processes of two devices.

Reads FOLDER/model onto meshes over both, compares each with a reading of its own, saves to FOLDER/saved, is refused
FOLDER/taken, and prints what it found.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

folder, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)

from jaxalign import models, sharding  # noqa: E402
from jaxalign.errors import InputError  # noqa: E402
from jaxalign.models import _load  # noqa: E402

sharding.initialize_distributed(f"localhost:{port}", 2, process)
taken: dict[str, int] = {}
read = _load._Leaf.read


def counted(self, region):
    """How many numbers of each tensor this process took from the files."""
    array = read(self, region)
    name = f"{self._weight.name}:{self._part}"
    taken[name] = taken.get(name, 0) + array.size
    return array


_load._Leaf.read = counted  # type: ignore[method-assign]
config, own = models.load_pretrained(folder / "model")
whole, shares = dict(taken), {}
for mesh in ("fsdp=4", "tensor=4", "data=2,fsdp=2"):
    taken.clear()
    _, params = models.load_pretrained(folder / "model", mesh=sharding.parse_mesh(mesh))
    shares[mesh] = {name: count / whole[name] for name, count in taken.items()}
    for (path, expected), leaf in zip(jax.tree_util.tree_leaves_with_path(own), jax.tree.leaves(params), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(expected)[shard.index], err_msg=str(path))
        np.testing.assert_array_equal(sharding.to_host(leaf), expected, err_msg=str(path))
    models.save_pretrained(folder / "saved" / mesh, config, params, max_shard_bytes=8_000)

try:
    models.save_pretrained(folder / "taken", config, params)
    refused = ""
except InputError as error:
    refused = str(error)
print(json.dumps({"shares": shares, "refused": refused}))
