"""Rows of figures as Markdown."""


def attention_table(rows: list[dict]) -> list[str]:
    """cuDNN beside XLA, a line a mask."""
    if not rows:
        return []
    lines = [
        "| attention, bfloat16 | output differs by | a gradient by | limit | XLA ms | cuDNN ms | XLA / cuDNN |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['output_error']:.1e} | {row['gradient_error']:.1e} | {row['limit']:.1e} "
            f"| {row['xla_ms']:.2f} | {row['cudnn_ms']:.2f} | {row['xla_ms'] / row['cudnn_ms']:.2f} |"
        )
    return [*lines, ""]


def steps_table(rows: list[dict]) -> list[str]:
    """Train steps, a line a workload and framework, and the ratio of ours to each other one."""
    if not rows:
        return []
    lines = ["| shape | task | | tokens/s | utilisation | peak memory, GB |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        share = "not known" if row["utilisation"] is None else f"{row['utilisation']:.1%}"
        lines.append(
            f"| {row['shape']} | {row['task']} | {row['framework']} | {row['tokens_per_s']:,.0f} | {share} "
            f"| {row['peak_gb']:.1f} |"
        )
    ours = {(row["shape"], row["task"]): row for row in rows if row["framework"].startswith("jaxalign")}
    for row in rows:
        own = ours.get((row["shape"], row["task"]))
        if own is not None and own is not row and not row["framework"].startswith("jaxalign"):
            lines.append(
                f"| {row['shape']} | {row['task']} | jaxalign / {row['framework']} "
                f"| {own['tokens_per_s'] / row['tokens_per_s']:.2f} | | {own['peak_gb'] / row['peak_gb']:.2f} |"
            )
    return [*lines, ""]


def sampling_table(rows: list[dict]) -> list[str]:
    """The sampler, a line a shape and form, and what refilling gains."""
    if not rows:
        return []
    lines = ["| shape | sampler | tokens/s | share of bandwidth |", "|---|---|---:|---:|"]
    plain = {row["shape"]: row["tokens_per_s"] for row in rows if row["form"] == "plain"}
    for row in rows:
        share = "not known" if row["share_of_bandwidth"] is None else f"{row['share_of_bandwidth']:.1%}"
        lines.append(f"| {row['shape']} | {row['form']} | {row['tokens_per_s']:,.0f} | {share} |")
    for row in rows:
        if row["form"] == "engine" and row["shape"] in plain:
            lines.append(f"| {row['shape']} | engine / plain | {row['tokens_per_s'] / plain[row['shape']]:.2f} | |")
    return [*lines, ""]
