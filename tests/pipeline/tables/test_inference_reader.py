from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.store import write_hdf5
from pipeline.tables import inference_reader
from pipeline.tables.inference_reader import open_inference


def test_blocks_hold_every_observation_once_whatever_their_size(
    tmp_path: Path, write_file: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = write_file(tmp_path / "a.h5", [f"s{n}" for n in range(11)])
    monkeypatch.setattr(inference_reader, "BLOCK_BYTES", 8 * 500 * 2 * 4)  # four observations: one chunk of three
    with open_inference(tmp_path / "a.h5") as f:
        rows = f.rows(["s9", "s0", "s10", "s5"])
        blocks = list(f.draw_blocks(rows))
        assert len(blocks) == 3  # rows 0-2, 3-5, 9-10: those without a chosen row are not read
        assert sorted(np.concatenate([p for p, _ in blocks])) == [0, 1, 2, 3]
        for positions, part in blocks:
            np.testing.assert_array_equal(part, draws[:, :, rows[positions]])
        np.testing.assert_array_equal(f.draws(9), draws[:, :, 9].T)


def test_padding_of_weighted_draws_is_left_out(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    draws = write_file(tmp_path / "a.h5", ["a", "b"], proposals=True)
    with open_inference(tmp_path / "a.h5") as f:
        stored = f.proposals(1)
        assert stored is not None
        np.testing.assert_array_equal(stored[0], draws[:, ::-1, 1].T)
        assert set(stored[1]) == {"log_joint", "log_weight"}
    write_file(tmp_path / "b.h5", ["a", "b"])
    with open_inference(tmp_path / "b.h5") as f:
        assert f.proposals(0) is None
        assert f.atypical() is None
        assert f.notes() is None
        assert f.certificate("typicality") is None


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    write_file(tmp_path / "a.h5", ["HD 1", "HD 2"])
    with open_inference(tmp_path / "a.h5") as f:
        with pytest.raises(InputError, match="no observation 'HD1' among its 2; expected one such as 'HD 1'"):
            f.rows(["HD1"])
        with pytest.raises(InputError, match="named twice"):
            f.rows(["HD 1", "HD 1"])
    write_hdf5(tmp_path / "other.h5", lambda file: None, {})
    with pytest.raises(InputError, match="not a file of posteriors"), open_inference(tmp_path / "other.h5"):
        pass


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, write_file: Callable[..., np.ndarray]) -> None:
    path = tmp_path / "a.h5"
    write_file(path, ["a", "b"], attributes={"likelihood": "learned"})
    with open_inference(path) as f:
        assert f.likelihood_is_learned()
        dataset = f.file["posterior/tp"]
        offset = dataset.id.get_chunk_info(0).byte_offset  # pyright: ignore
    path.write_bytes(path.read_bytes()[: offset + 100])
    with pytest.raises(InputError, match="truncated"), open_inference(path):
        pass
