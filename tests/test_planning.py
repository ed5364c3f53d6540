"""What a grid will cost: measured times, multiplied."""

from synthetic import record_of

from rctaf import records
from rctaf.planning import plan


def test_plan_multiplies_measured_times(store, grid, cell, capsys):
    plan(grid)
    assert "no measured step time yet" in capsys.readouterr().out
    # 2 epochs of 2 s and 26 s of evaluation, of 30 s in all; a sibling of 200 epochs: 426 s
    records.write(record_of(cell))
    plan(grid)
    out = capsys.readouterr().out
    assert "6 runs, 1 done, 5 to run" in out
    assert f"about {5 * 30 / 3600:.2g} hours of one CPU thread (x86_64 CPU) for 5 of them\n" in out
    longer = grid.with_name("longer.yaml")
    longer.write_text("name: longer\nscale: none\nblocks: [{axes: {epochs: [200], method: [trades, standard]}}]")
    plan(longer)
    out = capsys.readouterr().out
    assert f"about {426 / 3600:.2g} hours" in out
    assert "for 1 of them; no measured step time yet for the other 1" in out
