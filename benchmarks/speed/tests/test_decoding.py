"""The benchmarks of decoding run on any machine in their quick mode; they assert that what they compare is equal."""

from benchmarks.gpu import decoding as gpu_decoding
from benchmarks.speed.decoding import BASELINE, SLOWEST


def test_the_table_of_the_gpu_for_a_tiny_shape(capsys):
    assert gpu_decoding.main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    for baseline in (BASELINE, SLOWEST):
        assert sum(line.endswith(f" 1 x {baseline}") for line in lines) >= 1
