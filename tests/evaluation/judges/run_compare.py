"""A process that compares ``count`` items through the server at ``url`` with the cache at ``path``, then says so.

python run_compare.py URL PATH COUNT
"""

import sys

from jaxalign.evaluation.judges import EndpointConfig, Item, OpenAIJudge, VerdictCache, compare


def items(count: int) -> list[Item]:
    return [Item(prompt=f"item-{i} text", ours=f"one {i}", theirs=f"two {i}") for i in range(count)]


def judge(url: str, **changes) -> OpenAIJudge:
    settings = {"model": "loopback", "base_url": url, "api_key_variable": None, "concurrency": 8, "first_pause": 0.01}
    return OpenAIJudge(EndpointConfig(**(settings | changes)))


if __name__ == "__main__":
    url, path, count = sys.argv[1:]
    with VerdictCache(path) as cache:
        judged = compare(judge(url), items(int(count)), seed=0, cache=cache)
    print(" ".join(one.outcome for one in judged))
