"""Logs of programs: every line once, with its time, in files that cannot grow without bound."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from weft.agent.output import Follower, OutputLog, cap, older, stamp

NOON = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)


def opened(path: Path, **options: object) -> OutputLog:
    return OutputLog(path, now=lambda: NOON, **options)  # type: ignore[arg-type]


def test_each_line_gets_the_time_it_came(tmp_path: Path) -> None:
    log = opened(tmp_path / "output.log")
    log.feed(b"one\ntwo\r\n")
    log.close()
    assert (tmp_path / "output.log").read_text() == "2026-01-31T12:00:00.123Z one\n2026-01-31T12:00:00.123Z two\n"


def test_a_line_that_comes_in_pieces_is_one_line(tmp_path: Path) -> None:
    log = opened(tmp_path / "output.log")
    for piece in (b"a", b"b", b"c\nd"):
        log.feed(piece)
    assert log.last == ["abc"]
    log.close()
    assert log.last == ["abc", "d"]


def test_a_line_that_never_ends_is_cut(tmp_path: Path) -> None:
    log = opened(tmp_path / "output.log")
    log.feed(b"x" * 70_000)
    assert log.last == ["x" * 65_536]
    log.close()


def test_bytes_that_are_not_text_are_kept_readable(tmp_path: Path) -> None:
    log = opened(tmp_path / "output.log")
    log.feed(b"caf\xe9\n")
    assert log.last == ["caf\\xe9"]
    log.close()


def test_a_full_log_is_set_aside_and_two_generations_is_the_most(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    log = opened(path, limit_bytes=1000)
    for number in range(200):
        log.feed(b"line %d\n" % number)
    log.close()
    assert path.stat().st_size <= 1000
    assert older(path).stat().st_size <= 1000
    assert path.read_text().endswith("line 199\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["output.log", "output.log.1"]


@contextmanager
def no_room_beyond(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond *limit_bytes*; a write across it is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_does_not_take_is_lost_and_said_once(tmp_path: Path) -> None:
    warned: list[str] = []
    log = opened(tmp_path / "output.log", warn=warned.append)
    log.feed(b"before\n")
    with no_room_beyond((tmp_path / "output.log").stat().st_size + 10):
        log.feed(b"lost\n")
        log.feed(b"lost, too\n")
    assert log.last == ["before", "lost", "lost, too"]
    assert len(warned) == 1, warned
    assert str(tmp_path / "output.log") in warned[0]
    log.feed(b"after\n")
    log.close()
    lines = (tmp_path / "output.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["before", "after"]


def test_a_second_outage_is_said_again(tmp_path: Path) -> None:
    warned: list[str] = []
    log = opened(tmp_path / "output.log", warn=warned.append)
    for _ in range(2):
        with no_room_beyond(0):
            log.feed(b"lost\n")
        log.feed(b"kept\n")
    log.close()
    assert len(warned) == 2, warned


def test_the_tee_sees_whole_lines(tmp_path: Path) -> None:
    seen: list[str] = []
    log = opened(tmp_path / "output.log", tee=seen.append)
    log.feed(b"one\nt")
    log.feed(b"wo\n")
    log.close()
    assert seen == ["one", "two"]


def test_a_log_that_another_process_writes_is_cut_in_place(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        assert cap(path, 100)
        writer.write(b"new\n")
        assert path.read_bytes() == b"new\n"
        assert older(path).stat().st_size == 100
        assert not cap(path, 100)


def test_capping_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    assert not cap(tmp_path / "access.log", 0)


def test_a_log_for_whose_copy_there_is_no_space_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"x" * 200)
    older(path).symlink_to("/dev/full")
    assert cap(path, 100)
    assert path.read_bytes() == b""
    assert Path("/dev/full").exists()


def test_a_follower_reads_history_then_news_then_across_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    older(path).write_text("first\n")
    path.write_text("second\nthi")
    follower = Follower(path)
    assert list(follower.lines()) == ["first", "second"]
    with path.open("a") as file:
        file.write("rd\nfourth\n")
    path.rename(older(path))
    path.write_text("fifth\n")
    assert list(follower.lines()) == ["third", "fourth", "fifth"]
    assert list(follower.lines()) == []
    follower.close()


def test_a_follower_survives_a_cut_and_a_log_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    follower = Follower(path)
    assert list(follower.lines()) == []
    path.write_text("a long first line\n")
    assert list(follower.lines()) == ["a long first line"]
    path.write_text("cut\n")
    assert list(follower.lines()) == ["cut"]
    follower.close()


@pytest.mark.parametrize(
    ("time", "text"),
    [(NOON, "2026-01-31T12:00:00.123Z"), (NOON.replace(microsecond=0), "2026-01-31T12:00:00.000Z")],
)
def test_times_sort_as_text(time: datetime, text: str) -> None:
    assert stamp(time) == text


def test_the_last_lines_are_of_the_last_run(tmp_path: Path) -> None:
    """What a program said before it was started again is not what it ended with."""
    log = opened(tmp_path / "output.log")
    log.feed(b"first run\n")
    log.begin()
    assert log.last == []
    log.feed(b"second run\n")
    log.close()
    assert log.last == ["second run"]
    assert "first run" in (tmp_path / "output.log").read_text()


def test_a_last_line_that_never_ended_is_the_run_that_wrote_it(tmp_path: Path) -> None:
    log = opened(tmp_path / "output.log")
    log.feed(b"fatal")
    log.end_line()
    assert log.last == ["fatal"]
    log.begin()
    log.feed(b"x\ncut")
    log.begin()
    log.feed(b"y\n")
    log.close()
    lines = (tmp_path / "output.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["fatal", "x", "cut", "y"]


def test_history_ends_a_line_only_where_the_program_did(tmp_path: Path) -> None:
    """A form feed, a carriage return and U+2028 are part of a line; a log that was set aside is no different."""
    path = tmp_path / "output.log"
    lines = ["one\x0ctwo", "10 %\r20 %", "a\u2028b", ""]
    older(path).write_bytes("".join(f"{line}\n" for line in lines).encode())
    path.write_bytes(b"news\n")
    follower = Follower(path)
    assert list(follower.lines()) == [*lines, "news"]
    follower.close()
