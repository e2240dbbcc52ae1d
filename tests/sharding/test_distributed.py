import pytest

from jaxalign.errors import InputError
from jaxalign.sharding import initialize_distributed


def test_one_process_needs_nothing():
    initialize_distributed()
    initialize_distributed(num_processes=1)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"coordinator": "localhost:1"}, "--num-processes"),
        ({"num_processes": 2}, "--coordinator"),
        ({"process_id": 0}, "--coordinator"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "host:port"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "--process-id 2"),
    ],
)
def test_incomplete_flags_are_named(arguments, flag):
    with pytest.raises(InputError) as caught:
        initialize_distributed(**arguments)
    assert flag in str(caught.value)
