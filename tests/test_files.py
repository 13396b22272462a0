"""Kernel values in files: full disks, two writers, damaged files and notes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import networks
import numpy as np
import pytest

import keras_kare as kk
from keras_kare.kernels import disk, locking, sizes

ROWS = 10
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+b")
fcntl.flock(file, getattr(fcntl, sys.argv[2]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three by three tiles, six of them computed."""
    monkeypatch.setattr(sizes, "LARGEST_TILE", 4)
    monkeypatch.setattr(locking, "PATIENCE", 0.2)


@pytest.fixture
def problem(rng, tmp_path):
    x = rng.normal(size=(ROWS, networks.D)).astype("float32")
    kernel = kk.kernels.NTK(networks.mlp())
    return kernel, x, tmp_path / "k.npy", kernel.gram(x).numpy()


@pytest.fixture
def written(monkeypatch):
    """The tiles that calls write."""
    tiles, write = [], disk.DiskTarget.write

    def counted(self, i, j, *values):
        tiles.append((i, j))
        write(self, i, j, *values)

    monkeypatch.setattr(disk.DiskTarget, "write", counted)
    return tiles


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


class TestFullDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        def refused(file, offset, size):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refused, raising=False)

    def test_a_new_file(self, problem, full):
        kernel, x, path, _ = problem
        with pytest.raises(OSError, match=r"`out` needs .* cannot be had") as refused:
            kernel.gram(x, out=path)
        assert refused.value.errno == errno.ENOSPC
        assert not list(path.parent.iterdir())

    def test_a_mapped_array(self, problem, full):
        kernel, x, path, _ = problem
        out = np.memmap(path, "float32", "w+", shape=(ROWS, ROWS))
        with pytest.raises(OSError, match=r"`out` is mapped from a file .*no room"):
            kernel.gram(x, out=out)

    def test_blocks_are_there_before_values(self, problem, monkeypatch):
        kernel, x, path, gram = problem
        reserved = []
        monkeypatch.setattr(
            os, "posix_fallocate", lambda *given: reserved.append(given[1:]), raising=False
        )
        write = disk.DiskTarget.write

        def checked(self, *values):
            assert reserved == [(0, path.stat().st_size)]
            write(self, *values)

        monkeypatch.setattr(disk.DiskTarget, "write", checked)
        close(kernel.gram(x, out=path), gram)

    def test_a_disk_that_cannot_reserve(self, problem, monkeypatch):
        kernel, x, path, gram = problem

        def unknown(file, offset, size):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
        close(kernel.gram(x, out=path), gram)

    def test_no_room_for_the_note(self, problem, monkeypatch):
        kernel, x, path, _ = problem

        def refused(*given):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("pathlib.Path.write_text", refused)
        with pytest.raises(OSError, match="The note beside `out` cannot be written"):
            kernel.gram(x, out=path)
        assert not list(path.parent.iterdir())


@pytest.mark.skipif(locking.fcntl is None, reason="no locks here")
class TestTwoCalls:
    @pytest.fixture
    def hold(self):
        """Begin a process that locks a file."""
        begun = []

        def begin(path, kind):
            command = [sys.executable, "-c", HOLDER, str(path), kind]
            begun.append(subprocess.Popen(command, stdout=subprocess.PIPE))
            assert begun[-1].stdout.readline() == b"held\n"
            return begun[-1]

        yield begin
        for process in begun:
            process.kill()
            process.wait()
            process.stdout.close()

    def test_another_writer(self, problem, hold):
        kernel, x, path, gram = problem
        other = hold(path, "LOCK_EX")
        with pytest.raises(OSError, match="another call is writing to"):
            kernel.gram(x, out=path)
        other.kill()
        other.wait()
        close(kernel.gram(x, out=path), gram)  # the lock died with its process

    def test_a_finished_file_is_read_by_several(self, problem, hold, written):
        kernel, x, path, gram = problem
        kernel.gram(x, out=path)
        hold(path, "LOCK_SH")
        close(kernel.gram(x, out=path), gram)
        assert len(written) == 6

    def test_a_file_system_without_locks(self, problem, monkeypatch):
        kernel, x, path, gram = problem

        def unknown(*given):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locking.fcntl, "flock", unknown)
        close(kernel.gram(x, out=path), gram)

    def test_the_lock_is_given_back(self, problem, monkeypatch):
        kernel, x, path, gram = problem

        def broken(self, *given):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(disk.DiskTarget, "write", broken)
            with pytest.raises(KeyboardInterrupt):
                kernel.gram(x, out=path)
        close(kernel.gram(x, out=path), gram)
        assert sorted(p.name for p in path.parent.iterdir()) == [
            "k.npy",
            "k.npy.tiles.json",
        ]


class TestDamage:
    @pytest.mark.parametrize("place", [(1, 1), (6, 1), (1, 6)], ids=["own", "low", "high"])
    def test_flipped_bits(self, problem, written, place):
        kernel, x, path, gram = problem
        kernel.gram(x, out=path)
        del written[:]
        array = np.load(path, mmap_mode="r+")
        array.view("uint32")[place] ^= 1 << 20
        array.flush()
        with pytest.warns(RuntimeWarning, match=r"1 of 6 tiles .* computed again"):
            close(kernel.gram(x, out=path), gram)
        assert written == [(0, place != (1, 1))]
        kernel.gram(x, out=path)
        assert len(written) == 1

    def test_of_all_outputs(self, rng, tmp_path, written):
        x = rng.normal(size=(ROWS, networks.D)).astype("float32")
        kernel = kk.kernels.NTK(networks.mlp(c=2), "full")
        kernel.gram(x, out=tmp_path / "k.npy")
        count = len(written)
        close(kernel.gram(x, out=tmp_path / "k.npy"), kernel.gram(x))
        assert len(written) == count

    def test_lost_rows(self, problem, written):
        kernel, x, path, gram = problem
        kernel.gram(x, out=path)
        del written[:]
        path.write_bytes(path.read_bytes()[:-50])  # two rows and a half
        with pytest.warns(RuntimeWarning, match=r"3 of 6 tiles .* computed again") as told:
            close(kernel.gram(x, out=path), gram)
        assert [w.filename for w in told] == [__file__]
        assert written == [(0, 2), (1, 2), (2, 2)]

    @pytest.mark.parametrize("size", [1, 40])
    def test_a_truncated_file(self, problem, size):
        kernel, x, path, _ = problem
        kernel.gram(x, out=path)
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"damaged or truncated `.npy` file"):
            kernel.gram(x, out=path)

    def test_no_npy_file(self, problem):
        kernel, x, path, _ = problem
        kernel.gram(x, out=path)
        path.write_bytes(b"something else entirely" * 30)
        with pytest.raises(ValueError, match=r"damaged or truncated `.npy` file"):
            kernel.gram(x, out=path)

    def test_an_empty_file_is_a_new_one(self, problem):
        kernel, x, path, gram = problem
        path.touch()
        close(kernel.gram(x, out=path), gram)

    @pytest.mark.parametrize(
        "change",
        [
            lambda note: b"",
            lambda note: b"\xff\x00",
            lambda note: json.dumps(note).encode()[:-9],
            lambda note: b"[1, 2]",
            lambda note: json.dumps({**note, "tile": "4"}).encode(),
            lambda note: json.dumps({**note, "tile": 0}).encode(),
            lambda note: json.dumps({**note, "done": [[0, 0]]}).encode(),
            lambda note: json.dumps({**note, "done": [[0, -1, 3]]}).encode(),
            lambda note: json.dumps({"tile": 4, "done": []}).encode(),
        ],
    )
    def test_a_damaged_note(self, problem, change):
        kernel, x, path, _ = problem
        kernel.gram(x, out=path)
        note = path.with_name("k.npy.tiles.json")
        note.write_bytes(change(json.loads(note.read_text())))
        with pytest.raises(ValueError, match=r"note 'k.npy.tiles.json' is damaged"):
            kernel.gram(x, out=path)


def test_names_of_inputs_are_part_of_the_contents():
    a, b = np.zeros((3, 2)), np.ones((3, 2))
    kinds = [{"a": a, "b": b}, {"b": a, "a": b}, {"a": a, "c": b}, [a, b], [b, a]]
    assert len({disk.contents_of("f", kind) for kind in kinds}) == len(kinds)
    assert disk.contents_of({"a": a, "b": b}) == disk.contents_of({"b": b, "a": a})
