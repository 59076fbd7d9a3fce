"""What the benchmark of transformations carries out, and what its table says."""

from __future__ import annotations

from benchmarks.report import Report
from benchmarks.transform import cuda_row


def test_the_table_says_that_nothing_is_implemented_on_cuda() -> None:
    report = Report("transform")
    cuda_row(report)
    (row,) = report.rows
    assert (row["pairs"], "nothing is implemented on CUDA" in row["operations"]) == ("CUDA", True)
