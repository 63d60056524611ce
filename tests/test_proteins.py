"""Proteins: files of the field, chains, trajectories, output, geometry, scores, conditions."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import biotite.structure as struc
import gemmi
import numpy as np
import pytest
import torch
from biotite.structure.io.dcd import DCDFile
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile, get_structure, set_structure
from biotite.structure.io.trr import TRRFile
from biotite.structure.io.xtc import XTCFile

from jitkit import testing
from jitkit.data import collate
from jitkit.domains.proteins.adapter import Proteins
from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.ensembles import Compared, ensemble_measures, fluctuations
from jitkit.domains.proteins.readers import chains_in, groups_of, read_atoms, read_chains
from jitkit.domains.proteins.residues import LETTERS
from jitkit.domains.proteins.scores import gyration, measures, neighbour_distances
from jitkit.domains.proteins.secondary import secondary
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.domains.proteins.torsions import (
    ANGLES,
    LENGTHS,
    bond_angles,
    bond_lengths,
    ramachandran,
)
from jitkit.domains.proteins.trajectories import read_frames, whole_chains
from jitkit.errors import BadItem, ConditionError, DataError
from jitkit.utils.paths import located
from jitkit.utils.rotations import along_axes, random_rotation, superposed

DATA = Path(__file__).parent / "data" / "proteins"
FILES = sorted(DATA.glob("*.gz"))
NMR = DATA / "2juy_backbone.pdb.gz"
INHIBITOR = DATA / "5pti.cif.gz"
ATOMS = ("N", "CA", "C", "O")


def section(path: Path | str = DATA, **keys: Any) -> ProteinsSection:
    return ProteinsSection(name="proteins", path=str(path), **keys)


@pytest.fixture(scope="module")
def structures() -> Proteins:
    return Proteins(section(max_length=150, sequence=True, secondary_structure=True, held_out=0.2))


@pytest.fixture(scope="module")
def ensemble() -> Proteins:
    return Proteins(section(NMR, task="ensemble"))


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return file.readlines()


def written(folder: Path, lines: list[str], name: str = "made.pdb") -> Path:
    path = folder / name
    path.write_text("".join(lines))
    return path


def first_model() -> list[str]:
    """Atoms of the first model of the NMR ensemble."""
    lines = lines_of(NMR)
    return lines[1 : next(i for i, line in enumerate(lines) if line.startswith("ENDMDL"))]


def as_gemmi_reads(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Sequence and N, CA, C, O by chain, as an independent reader has them."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    found = {}
    for chain in structure[0]:
        polymer = chain.get_polymer()
        letters, places = "", []
        for residue in polymer.first_conformer():
            letters += gemmi.find_tabulated_residue(residue.name).one_letter_code.upper()
            own = [max((a for a in residue if a.name == name), key=lambda a: a.occ, default=None)
                   for name in ATOMS]  # fmt: skip
            places.append([[np.nan] * 3 if a is None else a.pos.tolist() for a in own])
        found[chain.name] = (letters, np.array(places))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_chains_are_those_of_an_independent_reader(path: Path) -> None:
    theirs = as_gemmi_reads(path)
    ours = chains_in(path, 20)
    assert len(ours) == len([s for s, _ in theirs.values() if len(s) >= 20]) > 0
    for chain in ours:
        letters, places = theirs[chain.name.split(":")[1]]
        assert chain.sequence == letters
        np.testing.assert_allclose(chain.positions, places, atol=1e-3)


def test_pdb_mmcif_and_binarycif_of_one_entry_read_alike(tmp_path: Path) -> None:
    atoms = read_atoms(INHIBITOR)
    pdb, cif, bcif = PDBFile(), CIFFile(), BinaryCIFFile()
    pdb.set_structure(atoms)
    pdb.write(tmp_path / "a.pdb")
    for file, name in ((cif, "a.cif"), (bcif, "a.bcif")):
        set_structure(file, atoms)
        file.write(tmp_path / name)
    (wanted,) = chains_in(INHIBITOR, 20)
    for name in ("a.pdb", "a.cif", "a.bcif"):
        (chain,) = chains_in(tmp_path / name, 20)
        assert chain.sequence == wanted.sequence
        np.testing.assert_allclose(chain.positions, wanted.positions, atol=1e-3)


def test_insertion_codes_are_residues_and_numbers_left_out_of_a_bonded_chain_no_gaps() -> None:
    _, chain = chains_in(DATA / "3pwp_backbone.pdb.gz", 20)
    numbers = {line[22:27] for line in lines_of(DATA / "3pwp_backbone.pdb.gz")
               if line[21] == "E" and line.startswith("ATOM")}  # fmt: skip
    assert "116A" in {number.strip() for number in numbers}
    assert len(chain) == len(numbers) == 245
    assert chain.bonded.all()


def with_a_gap(folder: Path) -> Backbone:
    """The chain of the first model without residues 10 to 13."""
    kept = [line for line in first_model() if not 10 <= int(line[22:26]) <= 13]
    (chain,) = chains_in(written(folder, kept), 20)
    return chain


def test_residues_that_are_missing_leave_a_gap_of_their_number(tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    steps = np.diff(chain.index)
    assert sorted(steps.tolist())[-2:] == [1, 5] and len(chain) == 24
    assert not chain.bonded[steps == 5].any()


def test_a_modified_residue_has_the_letter_of_its_parent() -> None:
    (chain,) = chains_in(NMR, 20)
    names = [line[17:20] for line in first_model() if line[12:16] == " CA "]
    assert "SME" in names and chain.sequence[names.index("SME")] == "M"


def test_of_alternate_locations_the_likeliest_is_taken(tmp_path: Path) -> None:
    lines = []
    for line in first_model():
        if line[22:26] == "   9":
            lines.append(line[:16] + "1" + line[17:54] + "  0.30" + line[60:])
            moved = f"{float(line[30:38]) + 0.5:8.3f}"
            line = line[:16] + "2" + line[17:30] + moved + line[38:54] + "  0.70" + line[60:]
        lines.append(line)
    (plain,) = chains_in(written(tmp_path, first_model(), "plain.pdb"), 20)
    (chain,) = chains_in(written(tmp_path, lines), 20)
    shift = chain.positions - plain.positions
    assert len(chain) == len(plain)
    np.testing.assert_allclose(shift[8], [[0.5, 0, 0]] * 4, atol=1e-4)
    assert not np.delete(shift, 8, axis=0).any()


@pytest.mark.parametrize("labels", ["AB", "  "])
def test_two_amino_acids_at_one_place_are_one_residue(labels: str, tmp_path: Path) -> None:
    first, second = labels[0], labels[1]
    lines = first_model()
    own = [i for i, line in enumerate(lines) if line[22:26] == "   9"]
    other = [lines[i][:16] + second + "ALA" + lines[i][20:] for i in own]
    for i in own:
        lines[i] = lines[i][:16] + first + lines[i][17:]
    path = written(tmp_path, lines[: own[-1] + 1] + other + lines[own[-1] + 1 :])
    (chain,) = chains_in(path, 20)
    (plain,) = chains_in(written(tmp_path, first_model(), "plain.pdb"), 20)
    assert chain.sequence == plain.sequence
    assert chain.bonded.all()


def test_an_amino_acid_that_is_a_ligand_is_no_residue(tmp_path: Path) -> None:
    ligand = [
        "HETATM" + line[6:22] + " 301" + line[26:30] + f"{float(line[30:38]) + 30:8.3f}" + line[38:]
        for line in first_model()[:4]
    ]
    (chain,) = chains_in(written(tmp_path, first_model() + ligand), 20)
    assert len(chain) == 28


def test_a_second_molecule_of_the_same_name_is_another_chain(tmp_path: Path) -> None:
    again = [line[:30] + f"{float(line[30:38]) + 40:8.3f}" + line[38:] for line in first_model()]
    chains = chains_in(written(tmp_path, first_model() + again), 20)
    assert [chain.name for chain in chains] == ["made.pdb:A", "made.pdb:A/2"]
    np.testing.assert_allclose(np.diff([c.positions for c in chains], axis=0)[0, ..., 0], 40, 1e-4)


def broken(change: Callable[[str], str]) -> list[str]:
    return [change(line) for line in first_model()]


def scaled(line: str, factor: float) -> str:
    return "".join(f"{float(line[i : i + 8]) * factor:8.3f}" for i in (30, 38, 46))


ODD: dict[str, tuple[list[str], str]] = {
    "empty": ([], "cannot be read"),
    "words": (["nothing\n"], "cannot be read"),
    "torn": ([first_model()[0][:40] + "\n"], "cannot be read"),
    "short": (first_model()[:16], "no chain of at least 20 amino acids; the longest has 4"),
    "water": (
        [line[:17] + "HOH" + line[20:] for line in first_model() if line[12:16] == " O  "],
        "the longest has 0",
    ),
    "nan": (broken(lambda line: line[:30] + "     nan" + line[38:]), "no finite number"),
    "one place": (broken(lambda line: line[:30] + "   0.000" * 3 + line[54:]), "0.00 Å apart"),
    "nanometer": (broken(lambda line: line[:30] + scaled(line, 0.1) + line[54:]), "Å apart"),
    "bohr": (broken(lambda line: line[:30] + scaled(line, 1.89) + line[54:]), "in angstrom"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    lines, text = ODD[name]
    path = written(tmp_path, lines)
    with pytest.raises(BadItem, match=text):
        chains_in(path, 20)
    with pytest.raises(DataError, match=f"no chains of proteins; the first: .*({text})"):
        read_chains(section(path, min_length=20))


def test_other_files_of_a_folder_are_read_when_one_is_torn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, first_model(), "good.pdb")
    written(tmp_path, ["torn\n"], "torn.pdb")
    chains, _ = read_chains(section(tmp_path, min_length=20))
    assert [chain.name for chain in chains] == ["good.pdb:A"]
    assert "1 of 2 files are passed over; the first: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere", "no such file or folder; domain.path="),
        ("test_proteins.py", r"are read from \.pdb, .*, not '\.py'"),
        ("data/proteins/README.md", "not '.md'"),
    ],
)
def test_a_path_without_structures_is_refused(path: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Proteins(section(Path(__file__).parent / path))


def test_chains_that_share_a_file_or_a_sequence_are_held_out_together() -> None:
    groups = groups_of([1, 1, 2, 3, 4], ["A", "B", "B", "C", "D"])
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="trajectory belongs to task: ensemble"):
        section(trajectory="a.xtc")
    with pytest.raises(ValueError, match="nothing to tell"):
        section(task="ensemble", sequence=True)
    with pytest.raises(ValueError, match="min_length 300 is above max_length 256"):
        section(min_length=300)


def test_an_ensemble_answers_all_questions(ensemble: Proteins) -> None:
    testing.check_domain(ensemble, tolerance=2e-5)
    assert ensemble.layout.grid == (28,) and not ensemble.layout.missing


def test_missing_atoms_are_masked_one_by_one(structures: Proteins) -> None:
    (chain,) = chains_in(DATA / "1mr1D.pdb.gz", 20)
    lacking = np.isnan(chain.positions)
    assert lacking.sum() == 6 and structures.layout.missing
    field = structures.encode(chain)
    assert field.mask is not None
    assert np.array_equal(~field.mask.numpy().T.reshape(-1, 4, 3), lacking)
    batch = collate(structures.layout, structures.conditions, [field])
    assert batch.mask is not None and not batch.x[~batch.mask].any()
    again = structures.decode(field)
    wanted = chain.positions - np.nanmean(chain.positions, axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(again.positions, wanted, atol=1e-3)


def test_gaps_are_seen_as_positions(structures: Proteins, tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    field = structures.encode(chain)
    assert field.coords is not None and field.coords.max() == 27
    assert np.array_equal(structures.decode(field).index, chain.index)


def test_a_piece_is_told_what_the_whole_chain_has_there_whatever_was_asked_before() -> None:
    fresh = Proteins(section(max_length=60, secondary_structure=True, held_out=0.2))
    chain = max(fresh.items("train"), key=len)
    scale = fresh.found["told"]["secondary_structure"]

    def told(start: int) -> np.ndarray[Any, Any]:
        field = fresh.encode(chain.piece(start, 60))
        return np.asarray(field.cond["secondary_structure"]) * scale["std"] + scale["mean"]

    first = [told(start) for start in range(0, len(chain) - 60, 7)]
    whole = secondary(chain)
    for number, start in enumerate(range(0, len(chain) - 60, 7)):
        own = whole[start : start + 60]
        expected = [(own == "a").mean(), (own == "b").mean()]
        np.testing.assert_allclose(first[number], expected, atol=1e-5)
        np.testing.assert_array_equal(told(start), first[number])


def test_pictures_keep_the_hand_of_what_they_show() -> None:
    for seed in range(8):
        points = np.random.default_rng(seed).standard_normal((9, 3)) * (3, 2, 1)
        turned = along_axes(points)
        np.testing.assert_allclose(superposed(points, turned), turned, atol=1e-9)


def test_training_turns_and_cuts_structures_and_leaves_ensembles_alone(
    structures: Proteins, ensemble: Proteins
) -> None:
    chain = max(structures.items("train"), key=len)
    assert len(chain) > 150
    pieces = [structures.decode(structures.encode(chain, np.random.default_rng(i))) for i in (0, 1)]
    assert [len(piece) for piece in pieces] == [150, 150]
    assert pieces[0].sequence != pieces[1].sequence
    whole = neighbour_distances(chain)
    for piece in pieces:
        start = chain.sequence.index(piece.sequence)
        np.testing.assert_allclose(
            neighbour_distances(piece), whole[start : start + 149], atol=1e-3
        )
    short = min(structures.items("train"), key=len)
    turned = [structures.encode(short, np.random.default_rng(i)).values for i in (0, 1)]
    assert not torch.allclose(turned[0], turned[1], atol=0.1)
    frame = ensemble.items("train")[0]
    assert torch.equal(ensemble.encode(frame).values,
                       ensemble.encode(frame, np.random.default_rng(0)).values)  # fmt: skip


def test_an_ensemble_is_the_same_however_its_frames_lie(ensemble: Proteins) -> None:
    frame = ensemble.items("train")[3]
    turn = random_rotation(np.random.default_rng(1))
    moved = Backbone((frame.positions @ turn.T + 7).astype(np.float32), frame.sequence, frame.index)
    before, after = (ensemble.encode(item).values for item in (frame, moved))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def models_of(path: Path) -> Any:
    """All models as biotite reads them from a PDB or mmCIF file."""
    if path.suffix == ".pdb":
        return PDBFile.read(path).get_structure()
    return get_structure(CIFFile.read(path))


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_structures_that_are_written_are_read_by_two_libraries(
    kind: str, structures: Proteins, tmp_path: Path
) -> None:
    chains = [*structures.items("train")[:3], with_a_gap(tmp_path)]
    items = [structures.decode(structures.encode(item)) for item in chains]
    files = [path for path in structures.write(items, tmp_path) if path.suffix == f".{kind}"]
    assert len(files) == 4 and not list(tmp_path.rglob("*.partial"))
    for item, path in zip(items, files, strict=True):
        wanted = item.positions[~np.isnan(item.positions).any(axis=2)]
        np.testing.assert_allclose(models_of(path)[0].coord, wanted, atol=1e-3)
        (chain,) = gemmi.read_structure(str(path))[0]
        read = [atom.pos.tolist() for residue in chain for atom in residue]
        np.testing.assert_allclose(read, wanted, atol=1e-3)
        numbers = [residue.seqid.num for residue in chain]
        assert numbers == (item.index - item.index[0] + 1).tolist()
        assert gemmi.one_letter_code([r.name for r in chain]) == item.sequence
        (again,) = chains_in(path, 20)
        assert np.array_equal(again.index, item.index - item.index[0])


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_an_ensemble_that_is_written_has_a_model_for_each_frame(
    kind: str, ensemble: Proteins, tmp_path: Path
) -> None:
    items = ensemble.items("train")[:5]
    (path,) = [p for p in ensemble.write(items, tmp_path) if p.suffix == f".{kind}"]
    wanted = np.stack([item.positions.reshape(-1, 3) for item in items])
    np.testing.assert_allclose(models_of(path).coord, wanted, atol=1e-3)
    models = gemmi.read_structure(str(path))
    read = [[a.pos.tolist() for c in model for r in c for a in r] for model in models]
    np.testing.assert_allclose(read, wanted, atol=1e-3)
    frames = read_frames(section(path, task="ensemble"))
    np.testing.assert_allclose(frames.positions.reshape(wanted.shape), wanted, atol=1e-3)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the NMR ensemble as a structure and as trajectories."""
    folder = tmp_path_factory.mktemp("trajectories")
    stack = read_atoms(NMR, model=None)
    for kind, name in ((XTCFile, "a.xtc"), (TRRFile, "a.trr"), (DCDFile, "a.dcd")):
        file = kind()
        file.set_coord(stack.coord)
        file.set_box(np.tile(np.eye(3) * 90.0, (len(stack), 1, 1)))
        file.write(str(folder / name))
    pdb = PDBFile()
    pdb.set_structure(stack[0])
    pdb.write(folder / "top.pdb")
    return folder


@pytest.mark.parametrize("kind", ["xtc", "trr", "dcd"])
def test_frames_of_a_trajectory_are_its_conformations(kind: str, trajectories: Path) -> None:
    models = read_frames(section(NMR, task="ensemble"))
    keys = {"task": "ensemble", "trajectory": str(trajectories / f"a.{kind}")}
    frames = read_frames(section(trajectories / "top.pdb", **keys))
    assert len(frames) == 24
    # XTC keeps hundredths
    np.testing.assert_allclose(frames.positions, models.positions, atol=0.006)
    third = read_frames(section(trajectories / "top.pdb", stride=3, **keys))
    np.testing.assert_array_equal(third.positions, frames.positions[::3])
    assert third[1].name == f"a.{kind}:3"


def test_a_chain_that_a_periodic_box_tore_is_put_together() -> None:
    frames = read_frames(section(NMR, task="ensemble")).positions.astype(np.float64)
    box = np.array([[30.0, 0, 0], [0, 28, 0], [5, 9, 26]])  # triclinic, smaller than the chain
    fractions = frames @ np.linalg.inv(box)
    torn = (fractions - np.floor(fractions)) @ box
    assert np.abs(np.diff(torn[:, :, 1], axis=1)).max() > 10
    whole = whole_chains(torn.astype(np.float32), np.tile(box, (len(frames), 1, 1)))
    apart = whole - frames
    np.testing.assert_allclose(apart - apart[:, :1, :1], 0, atol=1e-4)


def test_trajectories_that_do_not_fit_are_refused(trajectories: Path, tmp_path: Path) -> None:
    top = trajectories / "top.pdb"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": str(trajectories / "a.xtc")}
    with pytest.raises(BadItem, match="112 atoms a frame, and the structure .* has 108"):
        read_frames(section(written(tmp_path, first_model()[4:]), **keys))
    with pytest.raises(DataError, match="no such file; domain.trajectory="):
        read_frames(section(top, **keys | {"trajectory": "nowhere.xtc"}))
    with pytest.raises(DataError, match="are read from .dcd, .xtc, .trr"):
        read_frames(section(top, **keys | {"trajectory": str(top)}))
    torn = written(tmp_path, ["torn"], "torn.xtc")
    with pytest.raises(BadItem, match="torn.xtc: cannot be read"):
        read_frames(section(top, **keys | {"trajectory": str(torn)}))
    with pytest.raises(DataError, match="has one model; give domain.trajectory"):
        read_frames(section(top, task="ensemble"))
    stack = read_atoms(NMR, model=None)
    for name, order, text in (
        ("rolled.xtc", np.roll(np.arange(112), 8), "Å apart .* is the order of atoms"),
        ("turned.xtc", np.arange(112).reshape(-1, 4)[:, ::-1].ravel(), "from N to CA it is 1.23"),
    ):
        file = XTCFile()
        file.set_coord(stack.coord[:, order])
        file.write(str(tmp_path / name))
        with pytest.raises(BadItem, match=text):
            read_frames(section(top, **keys | {"trajectory": str(tmp_path / name)}))


def test_an_ensemble_of_several_chains_wants_one_named() -> None:
    path = DATA / "3pwp_backbone.pdb.gz"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": "a.xtc"}
    with pytest.raises(BadItem, match=r"domain.chain names none, .* D \(200\), E \(245\)"):
        read_frames(section(path, **keys))
    with pytest.raises(BadItem, match="domain.chain is 'Z'"):
        read_frames(section(path, chain="Z", **keys))


def test_superposition_undoes_any_motion_and_no_mirror() -> None:
    rng = np.random.default_rng(0)
    fixed = rng.standard_normal((20, 3)) * (5, 3, 1)
    moved = np.stack([fixed @ random_rotation(rng).T + rng.standard_normal(3) for _ in range(9)])
    np.testing.assert_allclose(superposed(moved, fixed), np.tile(fixed, (9, 1, 1)), atol=1e-12)
    mirrored = superposed(fixed * (1, 1, -1), fixed)
    assert np.sqrt(((mirrored - fixed) ** 2).mean()) > 0.3
    other = rng.standard_normal((20, 3))
    theirs, _ = struc.superimpose(fixed.astype(np.float32), other.astype(np.float32))
    np.testing.assert_allclose(superposed(other, fixed), theirs, atol=1e-4)


def test_torsions_are_those_of_an_independent_library() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    atoms = read_atoms(DATA / "1i8nA.pdb.gz")
    phi, psi, _ = struc.dihedral_backbone(atoms[struc.filter_amino_acids(atoms)])
    np.testing.assert_allclose(ramachandran(chain), np.degrees([phi, psi]), atol=1e-3)


def test_real_chains_are_near_the_ideal_geometry() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    for name, values in bond_lengths(chain).items():
        assert np.nanmean(values) == pytest.approx(LENGTHS[name], abs=0.015)
    for name, values in bond_angles(chain).items():
        assert np.nanmean(values) == pytest.approx(ANGLES[name], abs=1.5)


def test_nothing_is_measured_over_a_gap(tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    before = int(np.flatnonzero(~chain.bonded)[0])
    phi, psi = ramachandran(chain)
    assert np.isnan(psi[before]) and np.isnan(phi[before + 1])
    assert np.isnan(bond_lengths(chain)["C-N"][before])
    assert np.isnan(bond_angles(chain)["O-C-N"][before])
    assert len(neighbour_distances(chain)) == len(chain) - 2


def rigid_copy(chain: Backbone, matrix: Any) -> Backbone:
    moved = (chain.positions @ np.asarray(matrix).T).astype(np.float32)
    return Backbone(moved, chain.sequence, chain.index)


def test_scores_tell_real_chains_from_noisy_mirrored_and_collapsed_ones() -> None:
    chains = [chains_in(DATA / f"{name}.pdb.gz", 20)[0] for name in ("1i8nA", "2cviA", "2xcjA")]
    rng = np.random.default_rng(0)

    def scores(items: list[Backbone]) -> dict[str, float]:
        return {name: measure(items, chains) for name, measure in measures().items()}

    real = scores(chains)
    assert real["ramachandran_divergence"] == 0 and real["ca_distance"] > 0.97
    assert real["bond_length_error"] < 0.03 and real["clashes"] < 5
    assert 0.8 < real["radius_of_gyration"] < 1.2
    noise = [0.3 * rng.standard_normal(c.positions.shape) for c in chains]
    noisy = scores([Backbone((c.positions + n).astype(np.float32), c.sequence, c.index)
                    for c, n in zip(chains, noise, strict=True)])  # fmt: skip
    # a bond gets 0.3 twice, along it
    assert noisy["bond_length_error"] == pytest.approx(0.3 * np.sqrt(2), rel=0.1)
    assert noisy["ca_distance"] < 0.4 and noisy["ramachandran_divergence"] > 0.1
    mirrored = scores([rigid_copy(chain, np.diag([1, 1, -1])) for chain in chains])
    assert mirrored["ramachandran_divergence"] > 0.7
    assert mirrored["bond_angle_error"] == pytest.approx(real["bond_angle_error"], rel=1e-3)
    collapsed = scores([rigid_copy(chain, np.eye(3) / 2) for chain in chains])
    assert collapsed["clashes"] > 100
    assert collapsed["radius_of_gyration"] == pytest.approx(real["radius_of_gyration"] / 2)


def test_gyration_is_biotites() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    atoms = read_atoms(DATA / "1i8nA.pdb.gz")
    alphas = atoms[(atoms.atom_name == "CA") & struc.filter_amino_acids(atoms)]
    assert gyration(chain) == pytest.approx(float(struc.gyration_radius(alphas)), rel=1e-5)


def test_an_ensemble_agrees_with_itself_and_less_with_a_noisy_one(ensemble: Proteins) -> None:
    train = ensemble.items("train")
    scores = ensemble_measures(np.asarray(ensemble.found["reference"]))
    itself = {name: score(train[:], train) for name, score in scores.items()}
    assert itself == pytest.approx({"fluctuation_correlation": 1, "fluctuation_error": 0,
                                    "pair_distance_error": 0, "nearest_tm_score": 1,
                                    "nearest_lddt": 1}, abs=1e-5)  # fmt: skip
    rng = np.random.default_rng(0)
    noisy = [Backbone((f.positions + rng.standard_normal(f.positions.shape)).astype(np.float32),
                      f.sequence, f.index) for f in train]  # fmt: skip
    worse = {name: score(noisy, train) for name, score in scores.items()}
    assert worse["fluctuation_error"] > 1 and worse["pair_distance_error"] > 0.3
    assert worse["nearest_tm_score"] < 0.8 and worse["nearest_lddt"] < 0.9
    held_out = {name: score(ensemble.items("val")[:], train) for name, score in scores.items()}
    assert held_out["nearest_lddt"] > worse["nearest_lddt"]


def test_fluctuations_of_a_known_distribution_are_found() -> None:
    rng = np.random.default_rng(0)
    widths = np.linspace(0.1, 1, 40)
    mean = rng.standard_normal((40, 3)) * 20
    alphas = mean + widths[:, None] * rng.standard_normal((3000, 40, 3))
    found = fluctuations(alphas)
    np.testing.assert_allclose(found, widths * np.sqrt(3), rtol=0.05)
    assert Compared(mean)._pairs[0].shape == (741,)


def test_a_chain_to_be_has_what_is_asked(structures: Proteins) -> None:
    rng = np.random.default_rng(0)
    sequences = [item.sequence for item in structures.items("train")]
    for size in (None, 40, 150):
        field = structures.template(rng, {}, size)
        length = field.values.shape[1]
        letters = "".join((LETTERS + "?")[i] for i in field.cond["sequence"].tolist())
        assert size in (None, length) and any(letters in own for own in sequences)
    asked = {"length": torch.tensor([50.0]), "secondary_structure": torch.tensor([0.5, 0.1])}
    field = structures.template(rng, asked)
    scale = structures.found["told"]["secondary_structure"]
    told = field.cond["secondary_structure"].numpy() * scale["std"] + scale["mean"]
    np.testing.assert_allclose(told, [0.5, 0.1], atol=1e-6)
    assert field.values.shape == (12, 50)
    hidden = structures.template(rng, {"sequence": None, "secondary_structure": None}, 50)
    assert (hidden.cond["sequence"] == len(LETTERS)).all()
    assert hidden.cond["secondary_structure"].isnan().all()


@pytest.mark.parametrize(
    ("told", "size", "text"),
    [
        ({"length": torch.tensor([50.0])}, 40, "40 and 50 residues are asked for at once"),
        ({}, 151, "151 residues are out of range: the model was trained on up to 150"),
        ({"length": torch.tensor([40.5])}, None, "40.5 is no number of residues"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    told: Any, size: int | None, text: str, structures: Proteins
) -> None:
    with pytest.raises(ConditionError, match=text):
        structures.template(np.random.default_rng(0), told, size)


def test_an_ensemble_has_one_length(ensemble: Proteins) -> None:
    with pytest.raises(ConditionError, match="30 residues are asked for; this ensemble has 28"):
        ensemble.template(np.random.default_rng(0), {}, 30)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("MDAnalysisTests") is None, reason="its trajectories are 60 MB")
@pytest.mark.parametrize("kind", ["xtc", "trr"])
def test_fluctuations_of_a_simulation_are_those_of_an_independent_library(kind: str) -> None:
    """The package's own figures, by MDAnalysis, of frames that are not superposed.

    It takes atoms as they lie, and the periodic box has torn 20 residues from the rest at times.
    """
    data = "package:MDAnalysisTests/data/"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": f"{data}adk_oplsaa.{kind}"}
    frames = read_frames(section(f"{data}adk_oplsaa.gro", **keys))
    theirs = np.load(located(f"{data}adk_oplsaa_CA_rmsf.npy"))
    ours, whole = fluctuations(frames.positions[:, :, 1]), theirs < 10
    assert whole.sum() == 194
    np.testing.assert_allclose(ours[whole], theirs[whole], atol=0.01)
    assert ours.max() < 5
