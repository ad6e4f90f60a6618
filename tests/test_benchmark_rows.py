"""Rows of benchmarks on disk, and what two sets of them say; all made up."""

import re

import pytest
from benchmark_rows import made_up, scaled

from benchmarks import compare, results


class TestResults:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"commit": None}, "commit must be a string, got None"),
            ({"times": {}}, "times must be an object with 'ours', got {}"),
            ({"times": {"ours": {"p20": 1, "p50": 2}}}, "must have positive p20, p50, p80"),
            ({"times": {"ours": {"p20": 3, "p50": 2, "p80": 4}}}, "must ascend"),
            ({"ratio": {}}, r"ratio must name \['torch.nn'\], got {}"),
            ({"error": 3}, "error must be a string"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, changes, problem):
        path = tmp_path / "rows.jsonl"
        results.append([made_up(), made_up(**changes)], path)
        with pytest.raises(ValueError, match=rf"rows.jsonl:2: .*{problem}"):
            results.read(path)

    def test_kept_rows_are_sound(self):
        assert results.read(results.FULL)

    def test_newest_is_the_last_of_each_case_on_the_last_machine(self):
        old, new = made_up(date="old"), made_up(date="new")
        other = made_up(case="loss/train/700x200x10000", cpu="another cpu")
        assert results.newest([other, old, new]) == {results.key(new): new}

    def test_rows_of_a_commit(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        results.append([made_up(), made_up(commit="def5678")], path)
        assert [row["commit"] for row in results.find("def56789", path)] == ["def5678"]
        assert len(results.find(str(path))) == 2
        with pytest.raises(ValueError, match="'0123456' is no file and no commit with rows"):
            results.find("0123456", path)


class TestCompare:
    @pytest.mark.parametrize(
        ("after", "verdict", "factor"),
        [
            (scaled(made_up(), 1.3), "slower", 1.3),
            (scaled(made_up(), 0.7), "faster", 0.7),
            (scaled(made_up(), 1.03), "same", 1.03),
            (scaled(made_up(), 1.3, peer=1.3), "same", 1.0),  # the machine is slower
            (scaled(made_up(), 1.3, peer=1.1), "slower", 1.3 / 1.1),
            (scaled(made_up(), 1.0, peer=0.7), "same", 1.0),  # torch.nn is faster, ours is not
            (scaled(made_up(), 0.9, peer=0.7), "same", 1.0),  # one says faster, one slower
        ],
    )
    def test_verdicts(self, after, verdict, factor):
        change = compare.change([made_up()], [after])
        assert change.verdict == verdict
        assert change.factor == pytest.approx(factor)
        assert (change.before, change.after) == (10.0, after["times"]["ours"]["p50"])

    def test_noise_is_of_both_medians(self):
        quiet = compare.change([made_up()], [made_up()]).noise
        # 1.253 * (0.2 / 1.683 / 10) / 5 on either side, three of them, and what runs differ by.
        error = 1.253 * 0.2 / 1.683 / 10 / 5
        assert quiet == pytest.approx(3 * error * 2**0.5 + compare.BETWEEN_RUNS)
        loud = made_up()
        loud["times"]["ours"] |= {"p20": 5.0, "p80": 15.0}
        assert compare.change([loud], [scaled(loud, 1.3)]).verdict == "same"
        several = compare.change([made_up()] * 4, [made_up()] * 4).noise
        assert several == pytest.approx(3 * error * 2**0.5 / 2 + compare.BETWEEN_RUNS)

    def test_other_placement_is_unclear(self):
        after = scaled(made_up(), 1.5)
        after["floor"]["barrier_us"] = 0.03
        assert compare.change([made_up()], [after]).verdict == "unclear"

    def test_what_cannot_be_compared_is_said(self):
        a = [made_up("one"), made_up("two"), made_up("three"), made_up("four")]
        b = [made_up("one", error="it broke"), made_up("two", cpu="another"), made_up("three")]
        changes, notes = compare.compare(a, b)
        assert [c.case for c in changes] == ["three"]
        assert notes == [
            "only in A: 1 rows, four (default) the first",
            "one (default): it broke",
            "two (default): on different processors, ['a cpu', 'another']",
        ]

    def test_command_line(self, tmp_path, capsys):
        a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        results.append([made_up("one"), made_up("two")], a)
        results.append([scaled(made_up("one"), 1.5), made_up("two")], b)
        assert compare.main([str(a), str(b)]) == 1
        text = capsys.readouterr().out
        assert re.search(r"slower +\+50\.0% \(noise 6\.3%\)  10 -> 15 ms  one \(default\)", text)
        assert "two" not in text and "1 slower, 0 faster, 1 same, 0 unclear" in text
        assert compare.main([str(b), str(a)]) == 0
