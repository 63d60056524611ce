"""Molecules: files of the field, bonds, conditions, symmetry, output, scores, the whole walk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from scipy import stats

import jitkit as jk
from jitkit.data import collate
from jitkit.domains.molecules import chemistry, readers
from jitkit.domains.molecules.adapter import Molecules
from jitkit.domains.molecules.bonds import bond_orders, stable_atoms
from jitkit.domains.molecules.molecule import Molecule, PackedMolecules
from jitkit.domains.molecules.readers import read
from jitkit.domains.molecules.sdf import read_sdf
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.domains.molecules.writers import sdf_of, write
from jitkit.errors import BadItem, ConditionError, DataError
from jitkit.metrics.frechet import jensen_shannon
from jitkit.sampling.generate import generate
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection
from jitkit.utils.rotations import random_rotation

QM9 = Path(__file__).parent / "data" / "qm9.csv"
GAP, ALPHA = "HOMO_LUMO_gap_au", "Polarizability_bohr3"
KINASE = Path(RDConfig.RDContribDir) / "Fastcluster" / "testdata" / "cdk2.sdf"  # 47 ligands in 3-D
DRAWN = Path(RDConfig.RDDataDir) / "NCI" / "first_200.props.sdf"  # 200 drawings in 2-D


def section(path: Path | str = QM9, **keys: Any) -> MoleculesSection:
    return MoleculesSection(name="molecules", path=str(path), **keys)


@pytest.fixture(scope="module")
def qm9() -> Molecules:
    return Molecules(section(properties=[GAP, ALPHA], composition=True))


def molecule(smiles: str) -> Molecule:
    """A molecule in space as RDKit builds it."""
    with rdBase.BlockLogs():
        made = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert rdDistGeom.EmbedMolecule(made, randomSeed=1) == 0
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(made):
        rdForceFieldHelpers.MMFFOptimizeMolecule(made)
    return Molecule(
        np.array([atom.GetAtomicNum() for atom in made.GetAtoms()]),
        made.GetConformer().GetPositions(),
        np.array([atom.GetFormalCharge() for atom in made.GetAtoms()]),
    )


def same(a: PackedMolecules, b: PackedMolecules, tolerance: float = 1e-4) -> bool:
    return (
        np.array_equal(a.starts, b.starts)
        and np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.charges, b.charges)
        and bool(np.allclose(a.positions, b.positions, atol=tolerance, rtol=0))
    )


# Files


def test_sdf_says_what_rdkit_reads_in_it() -> None:
    ours = list(read_sdf(KINASE))
    theirs = list(Chem.SDMolSupplier(str(KINASE), removeHs=False, sanitize=False))
    assert len(ours) == len(theirs) == 47
    for own, other in zip(ours, theirs, strict=True):
        assert isinstance(own, Molecule)
        assert np.allclose(own.positions, other.GetConformer().GetPositions(), atol=1e-6)
        assert own.numbers.tolist() == [atom.GetAtomicNum() for atom in other.GetAtoms()]
        assert own.charges.tolist() == [atom.GetFormalCharge() for atom in other.GetAtoms()]
        assert all(float(other.GetProp(name)) == v for name, v in own.properties.items())


def test_the_new_form_of_sdf_says_the_same(tmp_path: Path) -> None:
    source = list(Chem.SDMolSupplier(str(KINASE), removeHs=False))[:20]
    source.append(Chem.AddHs(Chem.MolFromSmiles("C[N+](C)(C)CC(=O)[O-]")))
    rdDistGeom.EmbedMolecule(source[-1], randomSeed=0)
    for force in (False, True):
        writer = Chem.SDWriter(str(tmp_path / f"{force}.sdf"))
        writer.SetForceV3000(force)
        for each in source:
            writer.write(each)
        writer.close()
    old, new = (read(section(tmp_path / f"{force}.sdf")) for force in (False, True))
    assert "V3000" in (tmp_path / "True.sdf").read_text()
    assert same(old, new) and old.charges.any()


def test_every_format_holds_the_same_molecules(tmp_path: Path, qm9: Molecules) -> None:
    some = list(qm9.items("val"))[:12]
    write(some, tmp_path / "out")
    wanted = read(section(tmp_path / "out" / "samples.xyz"))
    assert len(wanted) == 12
    assert np.allclose(wanted.properties[GAP], [m.properties[GAP] for m in some])
    assert same(read(section(tmp_path / "out" / "samples.sdf")), wanted)

    most = max(len(m) for m in some)
    numbers, positions = np.zeros((12, most), int), np.full((12, most, 3), np.nan)
    for i, m in enumerate(some):
        numbers[i, : len(m)], positions[i, : len(m)] = m.numbers, m.positions
    gap = wanted.properties[GAP]
    np.savez(tmp_path / "padded.npz", Z=numbers, R=positions, gap=gap)
    flat = np.concatenate([m.positions for m in some])
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["coords"], file["num_atoms"] = flat / 0.529177210903, wanted.sizes
        file["atomic_numbers"] = np.concatenate([m.numbers for m in some])
        file["gap"] = gap
    padded = read(section(tmp_path / "padded.npz"))
    packed = read(section(tmp_path / "flat.h5", units="bohr"))
    assert same(padded, wanted) and same(packed, wanted)
    assert np.allclose(padded.properties["gap"], gap) and np.allclose(packed.properties["gap"], gap)


def test_frames_of_one_molecule_share_their_elements(tmp_path: Path) -> None:
    """As in MD17: positions (frames, atoms, 3) beside the numbers of one frame."""
    water = molecule("O")
    np.savez(tmp_path / "md.npz", z=water.numbers, R=np.stack([water.positions] * 5), E=np.ones(5))
    found = read(section(tmp_path / "md.npz"))
    assert found.sizes.tolist() == [3] * 5 and found.properties["E"].tolist() == [1.0] * 5


QM9_XYZ = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def test_a_file_of_qm9_as_it_was_published(tmp_path: Path) -> None:
    for name in ("dsgdb9nsd_000001", "dsgdb9nsd_000002"):
        (tmp_path / f"{name}.xyz").write_text(QM9_XYZ)
    found = read(section(tmp_path))
    assert found.sizes.tolist() == [5, 5] and found.smiles == ["C", "C"]
    assert found.positions[2, 2] == pytest.approx(2.765748e-4)
    assert found.properties["gap"][0] == 0.5048 and found.properties["Cv"][0] == 6.469
    assert found.names[0] == "dsgdb9nsd_000001"


def test_exponents_of_mathematica_in_a_table_are_powers_of_ten(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("name,Elements,XYZ_Ang,gap\nwater,\"['O','H','H']\","
                    '"[[0.,0.,1.2*^-6],[.96,0.,0.],[-.24,.93,0.]]",3.*^-1\n')  # fmt: skip
    found = read(section(file))
    assert found.positions[0, 2] == pytest.approx(1.2e-6)
    assert found.properties["gap"].tolist() == [0.3] and found.names == ["water"]


WATER = "O 0 0 0\nH .96 0 0\nH -.24 .93 0\n"
BAD: dict[str, tuple[str, str, str]] = {
    "too few atoms": ("a.xyz", "4\n\n" + WATER, "4 atoms are announced, and there are 3"),
    "too many": ("a.xyz", "2\n\n" + WATER, "more lines than atoms: 'H -.24 .93 0'"),
    "no element": ("a.xyz", "3\n\n" + WATER.replace("O", "Q"), "'Q 0 0 0' begins with no element"),
    "a word for a number": ("a.xyz", "3\n\n" + WATER.replace(".93", "up"), "no number in column 3"),
    "not finite": ("a.xyz", "3\n\n" + WATER.replace(".93", "nan"), "that is no finite number"),
    "infinite": ("a.xyz", "3\n\n" + WATER.replace(".93", "inf"), "that is no finite number"),
    "one on the other": ("a.xyz", "3\n\n" + WATER.replace("-.24 .93", ".96 .001"), "0.001 apart"),
    "a crystal": ("a.xyz", '3\nLattice="9 0 0 0 9 0 0 0 9"\n' + WATER, "a periodic cell"),
    "no atoms": ("a.xyz", "0\n\n", "no atoms"),
    "empty": ("a.xyz", "", "a.xyz: no molecules in it"),
    "an empty sdf": ("a.sdf", "", "a.sdf: no molecules in it"),
    "no sdf": ("a.sdf", "hello\nworld\n", "no counts of atoms and bonds in its fourth line"),
    "no npz": ("a.npz", "hello", "cannot be read as .npz"),
    "no hdf5": ("a.h5", "hello", "cannot be read as HDF5"),
    "nothing known": ("a.txt", "hello", "molecules are read from .sdf.*not '.txt'"),
    "no columns": ("a.csv", "a,b\n1,2\n", "no molecules in it"),
    "a torn row": ("a.csv", "Elements,XYZ_Ang\n\"['H']\"\n", "line 2: 1 cells under 2 headings"),
    "atoms and places": (
        "a.csv",
        "Elements,XYZ_Ang\n\"['H','H']\",\"[[0,0,1]]\"\n",
        "line 2: 3 numbers for the positions of 2 atoms",
    ),
    "nanometres": ("a.xyz", "3\n\nO 0 0 0\nH .096 0 0\nH -.024 .093 0\n", "units=nanometer"),
    "bohr": ("a.xyz", "3\n\nO 0 0 0\nH 1.81 0 0\nH -.45 1.76 0\n", "domain.units=bohr"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_cannot_be_read_gets_one_clear_message(what: str, tmp_path: Path) -> None:
    name, text, why = BAD[what]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=why):
        read(section(tmp_path / name))


def test_flat_molecules_in_space_are_no_drawings(tmp_path: Path) -> None:
    """RDKit's own drawings are refused; benzene and water, flat and said to be 3-D, are not."""
    with pytest.raises(DataError, match=r"no molecules; the first: .*a drawing \(2-D\)"):
        read(section(DRAWN))
    benzene = molecule("c1ccccc1")
    flat = Molecule(benzene.numbers, _in_plane(benzene.positions), benzene.charges)
    write([flat], tmp_path)
    text = (tmp_path / "samples.sdf").read_text()
    assert read(section(tmp_path / "samples.sdf")).sizes.tolist() == [12]
    (tmp_path / "unsaid.sdf").write_text(text.replace("3D", "  ", 1))
    with pytest.raises(DataError, match="a drawing"):
        read(section(tmp_path / "unsaid.sdf"))


def _in_plane(positions: np.ndarray) -> np.ndarray:
    about = positions - positions.mean(axis=0)
    turned = about @ np.linalg.eigh(about.T @ about)[1][:, ::-1]
    return turned * [1, 1, 0]


def test_hydrogens_that_are_not_there_are_asked_for_or_left_out(tmp_path: Path) -> None:
    ethanol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(ethanol, randomSeed=0)
    for name, made in (("all", ethanol), ("heavy", Chem.RemoveHs(ethanol))):
        Chem.MolToMolFile(made, str(tmp_path / f"{name}.mol"))
    with pytest.raises(DataError, match=r"5 hydrogens are not there.*AddHs.*hydrogens=drop"):
        read(section(tmp_path / "heavy.mol"))
    dropped = [read(section(tmp_path / f"{n}.mol", hydrogens="drop")) for n in ("all", "heavy")]
    assert same(dropped[0], dropped[1]) and dropped[0].numbers.tolist() == [6, 6, 8]


def test_bad_ones_among_good_ones_are_passed_over_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "3\n\n" + WATER
    text = good + BAD["too few atoms"][1] + good + BAD["not finite"][1] + BAD["too many"][1] + good
    (tmp_path / "many.xyz").write_text(text)
    assert len(read(section(tmp_path))) == 3
    assert "3 of 6 molecules are passed over; the first: many:1: 4 atoms" in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder; domain.path=PATH"):
        read(section(tmp_path / "none"))
    with pytest.raises(DataError, match="holds no files of molecules"):
        read(section(tmp_path))
    with pytest.raises(DataError, match="domain.path is missing.*package:qm9pack"):
        read(MoleculesSection(name="molecules"))
    with pytest.raises(DataError, match="'nowhere' is not installed: pip install"):
        read(section("package:nowhere/data"))
    with pytest.raises(DataError, match=rf"no property 'gap'; it has {ALPHA}, {GAP}"):
        Molecules(section(properties=["gap"]))
    with pytest.raises(DataError, match=r"3 molecules cannot be split.*held_out=0.01"):
        (tmp_path / "few.xyz").write_text(("3\n\n" + WATER) * 3)
        Molecules(section(tmp_path, held_out=0.01))


# Bonds


@pytest.mark.parametrize(
    ("smiles", "orders"),
    [
        ("C", {1: 4}),
        ("C=C", {1: 4, 2: 1}),
        ("C#N", {1: 1, 3: 1}),
        ("C#C", {1: 2, 3: 1}),
        ("OC=O", {1: 3, 2: 1}),
        ("CCO", {1: 8}),
    ],
)
def test_bonds_by_distance_are_those_of_simple_molecules(
    smiles: str, orders: Mapping[int, int]
) -> None:
    found = bond_orders(molecule(smiles))
    assert np.array_equal(found, found.T)
    assert Counter(found[np.triu_indices(len(found))].tolist()) - Counter({0: 10**6}) == orders
    assert stable_atoms(molecule(smiles)).all()


def test_charges_shift_the_bonds_that_an_atom_wants() -> None:
    for smiles in ("[NH4+]", "[OH-]", "[OH3+]", "C[NH3+]"):
        ion = molecule(smiles)
        assert stable_atoms(ion).all(), smiles
        neutral = Molecule(ion.numbers, ion.positions, 0 * ion.charges)
        assert not stable_atoms(neutral).all(), smiles


def test_real_molecules_are_stable_and_shaken_ones_are_not(qm9: Molecules) -> None:
    """QM9 has 99 % and 95 % of stable atoms and molecules; a fifth of an angstrom undoes it."""
    atoms = [stable_atoms(m) for m in qm9.items("train")]
    assert np.concatenate(atoms).mean() == pytest.approx(0.99, abs=0.006)
    assert np.mean([a.all() for a in atoms]) == pytest.approx(0.95, abs=0.02)
    rng = np.random.default_rng(0)
    shaken = [
        Molecule(m.numbers, m.positions + 0.2 * rng.standard_normal((len(m), 3)), m.charges)
        for m in qm9.items("val")
    ]
    assert np.concatenate([stable_atoms(m) for m in shaken]).mean() < 0.6


@pytest.mark.slow
def test_all_of_qm9_has_the_stability_that_the_paper_gives() -> None:
    """99.0 % of atoms and 95.2 % of molecules (arXiv:2203.17003, table 1)."""
    pytest.importorskip("qm9pack")
    atoms = [stable_atoms(m) for m in read(section("package:qm9pack/data"))]
    assert len(atoms) == 130_831
    assert round(np.concatenate(atoms).mean(), 2) == 0.99
    assert round(np.mean([a.all() for a in atoms]), 2) == 0.95


# Encoding, symmetry


def test_rotations_are_proper_and_prefer_no_direction() -> None:
    """Where an arrow goes is even over the sphere, and so is the angle's known law."""
    drawn = np.stack([random_rotation(np.random.default_rng(i)) for i in range(3000)])
    assert np.allclose(drawn @ drawn.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(drawn), 1)
    for k in range(9):  # any coordinate of a point of the sphere is even over (-1, 1)
        assert stats.kstest(drawn.reshape(-1, 9)[:, k], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    angle = np.arccos(((np.trace(drawn, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))
    law = stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi)  # of the Haar measure
    assert law.pvalue > 1e-3


def test_training_turns_molecules_and_nothing_else(qm9: Molecules) -> None:
    item = qm9.items("train")[3]
    plain = qm9.encode(item)
    turned = qm9.encode(item, np.random.default_rng(0))
    assert not torch.allclose(plain.values[:3], turned.values[:3], atol=0.1)
    assert torch.equal(plain.values[3:], turned.values[3:])
    torch.testing.assert_close(
        torch.cdist(plain.values[:3].T, plain.values[:3].T),
        torch.cdist(turned.values[:3].T, turned.values[:3].T),
        atol=1e-3,
        rtol=0,
    )
    still = Molecules(section(rotate=False)).encode(item, np.random.default_rng(0))
    assert torch.equal(still.values, plain.values)


def rods(path: Path, **keys: Any) -> Molecules:
    """Chains of three atoms along x, none of them turned: H-C-H of one length, H-C-N of another."""
    rng = np.random.default_rng(0)
    entries = []
    for _ in range(300):
        last, reach = [("H", 1.1), ("N", 1.5)][rng.integers(2)]
        entries.append(f"3\n\nH {-1.1} 0 0\nC 0 0 0\n{last} {reach} 0 0\n")
    (path / "rods.xyz").write_text("".join(entries))
    return Molecules(section(path / "rods.xyz", **keys))


TINY = {
    "name": "rods",
    "domain": "molecules",
    "model": {"width": 32, "depth": 2, "heads": 2, "bottleneck": 16},
    "diffusion": {"P_mean": 0.0},
    "train": {"steps": 120, "batch_size": 32, "lr": 5e-3, "ema": [0.95], "precision": "float32"}
    | {"preview_samples": 2, "validate_items": 8, "optimizer": "muon"},
}


@pytest.mark.parametrize("rotate", [True, False])
def test_samples_lie_in_every_direction_where_training_turned_the_data(
    rotate: bool, tmp_path: Path
) -> None:
    """All training molecules lie along x. Turned in training, samples lie evenly over the sphere:
    the square of their direction's x has mean 1/3 and deviation 0.298; left alone, nearly 1."""
    domain = rods(tmp_path, rotate=rotate)
    # no direction is preferred as far as has been learned: 120 steps leave 0.07 of 1/3, 300 half
    run = jk.train(TINY, {"train.steps": 300}, run=tmp_path / "run", domain=domain)
    denoiser = jk.load(run, domain=domain)
    n = 300
    quick = SampleSection(steps=10, method="euler")
    made = generate(denoiser, n, conditioning_for(denoiser, n), quick)
    directions = []
    for item in made:
        far = np.unravel_index(item.distances.argmax(), item.distances.shape)
        along = item.positions[far[0]] - item.positions[far[1]]
        directions.append(along / np.sqrt(along @ along))
    squares = (np.stack(directions) ** 2).mean(axis=0)
    if rotate:
        assert np.abs(squares - 1 / 3).max() < 4 * 0.298 / np.sqrt(n)
    else:
        assert squares[0] > 0.8


# Sizes and conditions of samples


def drawn(domain: Molecules, told: Mapping[str, Any], size: int | None = None) -> list[Any]:
    told = {k: v if v is None else torch.tensor(v) for k, v in told.items()}
    return [domain.template(np.random.default_rng(i), told, size) for i in range(200)]


def test_sizes_and_properties_are_drawn_together_as_training_molecules_have_them(
    qm9: Molecules,
) -> None:
    outlines = drawn(qm9, {})
    sizes = np.array([field.values.shape[1] for field in outlines])
    real = qm9.items("train").sizes
    assert stats.ks_2samp(sizes, real).pvalue > 1e-3
    alpha = [float(field.cond[ALPHA][0]) for field in outlines]
    assert np.corrcoef(sizes, alpha)[0, 1] > 0.6  # larger molecules are easier to polarize
    counts = torch.stack([field.cond["composition"] for field in outlines])
    scale = qm9.found["told"]["composition"]
    atoms = counts.double() * torch.tensor(scale["std"]) + torch.tensor(scale["mean"])
    assert atoms.sum(dim=1).round().tolist() == sizes.tolist()


def test_what_is_asked_of_a_molecule_is_what_it_is_told(qm9: Molecules) -> None:
    scale = qm9.found["told"]
    small = drawn(qm9, {}, size=12)
    assert {field.values.shape[1] for field in small} == {12}
    water = drawn(qm9, {"composition": [2.0, 0.0, 0.0, 1.0, 0.0]})[0]  # H, C, N, O, F; not in it
    assert water.values.shape[1] == 3 and water.cond[GAP].isnan().all()
    low, high = drawn(qm9, {ALPHA: [50.0]}), drawn(qm9, {ALPHA: [95.0]})
    told = (50.0 - scale[ALPHA]["mean"][0]) / scale[ALPHA]["std"][0]
    assert all(float(field.cond[ALPHA][0]) == pytest.approx(told, rel=1e-5) for field in low)
    assert all(field.cond[GAP].isnan().all() for field in low)
    mean = [np.mean([field.values.shape[1] for field in some]) for some in (low, high)]
    assert mean[1] - mean[0] > 5
    untold = drawn(qm9, {ALPHA: None, "composition": None})
    assert all(f.cond[ALPHA].isnan().all() and f.cond["composition"].isnan().all() for f in untold)
    assert not any(field.cond[GAP].isnan().any() for field in untold)


def test_what_cannot_be_together_is_refused(qm9: Molecules) -> None:
    with pytest.raises(ConditionError, match="12 and 9 atoms are asked for at once"):
        drawn(qm9, {"num_atoms": [9.0]}, size=12)
    with pytest.raises(ConditionError, match="composition: 1.5 is no number of atoms"):
        drawn(qm9, {"composition": [2.0, 1.5, 0.0, 0.0, 0.0]})
    with pytest.raises(ConditionError, match="none of the training molecules has it"):
        drawn(qm9, {"composition": [np.nan, 25.0, np.nan, np.nan, np.nan]})
    with pytest.raises(ConditionError, match="99 atoms are out of range.*up to 2"):
        drawn(qm9, {"composition": [99.0, 0.0, 0.0, 0.0, 0.0]})


# Output


def broken(count: int) -> list[Molecule]:
    """Atoms thrown about, charged or not, alone or by the dozen."""
    rng = np.random.default_rng(0)
    return [
        Molecule(
            rng.choice([1, 6, 7, 8, 9, 16, 17, 35], size),
            rng.standard_normal((size, 3)) * rng.choice([0.5, 1.5, 30]),
            rng.integers(-1, 2, size) * (i % 2),
            {"energy": float(rng.standard_normal())},
        )
        for i, size in enumerate(rng.integers(1, 25, count).tolist())
    ]


def test_rdkit_reads_every_sdf_that_is_written(
    tmp_path: Path, qm9: Molecules, capsys: pytest.CaptureFixture[str]
) -> None:
    ions = [molecule(smiles) for smiles in ("C[N+](C)(C)C", "CC(=O)[O-]", "[NH3+]CC(=O)[O-]")]
    items = [*list(qm9.items("val"))[:30], *ions, *broken(60)]
    write(items, tmp_path)
    with rdBase.BlockLogs():
        file = str(tmp_path / "samples.sdf")
        found = list(Chem.SDMolSupplier(file, removeHs=False, sanitize=False))
        bonded = [m.GetProp("bonds") == "perceived" for m in found]
        sanitized = list(Chem.SDMolSupplier(file))
    assert all(m for m, b in zip(sanitized, bonded, strict=True) if b)
    for item, other in zip(items, found, strict=True):
        assert item.numbers.tolist() == [atom.GetAtomicNum() for atom in other.GetAtoms()]
        assert np.allclose(item.positions, other.GetConformer().GetPositions(), atol=1e-4)
    assert all(bonded[30:33]) and sum(bonded[:30]) >= 27 and not all(bonded[33:])
    for item, other in zip(items[30:33], found[30:33], strict=True):
        assert item.charges.tolist() == [atom.GetFormalCharge() for atom in other.GetAtoms()]
    without = [m.GetNumBonds() for m, b in zip(found, bonded, strict=True) if not b]
    assert set(without) == {0}
    told = f"the bonds of {len(without)} of {len(items)} molecules cannot be told"
    assert told in capsys.readouterr().err
    xyz, sdf = (read_all(tmp_path / f"samples.{end}") for end in ("xyz", "sdf"))
    own = np.repeat(~np.array(bonded), sdf.sizes)  # RDKit puts charges where bonds want them
    assert same(xyz, replace(sdf, charges=np.where(own, sdf.charges, xyz.charges)))
    assert not list(tmp_path.glob("*.partial"))


def read_all(path: Path) -> PackedMolecules:
    """Molecules of a file, those that are no chemistry included."""
    from jitkit.domains.molecules.molecule import pack
    from jitkit.domains.molecules.xyz import read_xyz

    found = list(read_xyz(path) if path.suffix == ".xyz" else read_sdf(path, hydrogens=False))
    assert not [m for m in found if isinstance(m, BadItem)]
    return pack([m for m in found if isinstance(m, Molecule)])


def test_a_large_molecule_is_written_in_the_new_form(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(11.0)] * 3), axis=-1).reshape(-1, 3)[:1100] * 4
    large = Molecule(np.full(1100, 18), grid, np.zeros(1100, int))
    file = tmp_path / "large.sdf"
    file.write_text(sdf_of(large, "argon", bonded=False))
    (found,) = Chem.SDMolSupplier(str(file), removeHs=False)
    assert found.GetNumAtoms() == 1100
    assert read(section(file, units="angstrom")).sizes.tolist() == [1100]


def test_without_rdkit_files_are_written_without_bonds_and_scores_are_fewer(
    tmp_path: Path, qm9: Molecules, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("jitkit.domains.molecules.chemistry.find_spec", lambda name: None)
    write(list(qm9.items("val"))[:3], tmp_path)
    assert "RDKit is not installed (pip install 'jitkit[molecules]')" in capsys.readouterr().err
    assert (tmp_path / "samples.sdf").read_text().count("\nnone\n") == 3
    names = set(qm9.scores())
    assert "atom_stability" in names and not names & {"validity", "novelty", "valid_and_unique"}
    with pytest.raises(DataError, match="validity needs RDKit"):
        chemistry.check_rdkit("validity")


def test_a_picture_shows_all_molecules_and_marks_what_is_wrong(qm9: Molecules) -> None:
    good, bad = qm9.items("val")[0], broken(3)[0]
    one, four = qm9.preview([good]), qm9.preview([good, bad, good, bad])
    assert one.size[0] < four.size[0] <= 4 * one.size[0]
    pink = np.array([255, 59, 127])
    near = [
        (np.abs(np.asarray(qm9.preview([m])).astype(int) - pink).sum(axis=2) < 60).any()
        for m in (molecule("CCO"), bad)
    ]
    assert near == [False, True]


# Scores


def test_scores_of_copies_duplicates_and_wrecks_are_what_they_must_be(qm9: Molecules) -> None:
    train, val = list(qm9.items("train")), list(qm9.items("val"))
    scores = qm9.scores()
    assert (
        scores["novelty"](train[:40], train) <= 0.05
    )  # their own names, told from their distances
    assert scores["novelty"](val[:40], train) == 1.0
    assert scores["validity"](val, train) >= 0.95
    assert scores["valid_and_unique"]([val[0]] * 10, train) == pytest.approx(0.1)
    for name in ("bond_length", "angle", "element", "size"):
        measure = scores[f"{name}_divergence"]
        assert measure(train, train) == pytest.approx(0, abs=1e-9)
        assert measure(val, train) < 0.2
        assert getattr(measure, "best", None) == "low"
    wrecks = broken(60)
    assert scores["validity"](wrecks, train) < 0.2
    assert scores["element_divergence"](wrecks, train) > 0.2
    assert scores["size_divergence"]([molecule("O")] * 5, train) == 1.0
    assert np.isnan(scores["novelty"](wrecks[:1], train))


def test_validity_wants_one_piece() -> None:
    water = molecule("O")
    two = Molecule(
        np.tile(water.numbers, 2),
        np.concatenate((water.positions, water.positions + 9)),
        np.tile(water.charges, 2),
    )
    assert chemistry.is_valid(water) and not chemistry.is_valid(two)
    assert chemistry.smiles(water) == "O" and chemistry.smiles(two) is None


def test_a_missing_bond_is_not_paid_for_with_bare_protons() -> None:
    methane = molecule("C")
    far = methane.positions + np.outer(methane.numbers == 1, [1, 1, 1]) * 4.0
    assert chemistry.perceived(methane) is not None
    assert chemistry.perceived(Molecule(methane.numbers, far, methane.charges)) is None


def test_names_are_told_from_distances_as_the_file_has_them(qm9: Molecules) -> None:
    names = [(chemistry.smiles(m), chemistry.written_smiles(m)) for m in qm9.items("val")]
    assert np.mean([own == written for own, written in names]) >= 0.9


def test_the_error_of_a_property_is_the_regressors_own_on_real_molecules(qm9: Molecules) -> None:
    """Asked for what they have, molecules are off by the regressor's error; swapped, by more."""
    train, val = list(qm9.items("train")), list(qm9.items("val"))
    measure = qm9.scores()[f"{ALPHA}_error"]
    spread = np.std([m.properties[ALPHA] for m in val])
    own = measure(val, train)
    assert 0 < own < 0.25 * spread
    swapped = [
        Molecule(m.numbers, m.positions, m.charges, other.properties)
        for m, other in zip(val, val[1:] + val[:1], strict=True)
    ]
    assert measure(swapped, train) > 3 * own
    untold = [Molecule(m.numbers, m.positions, m.charges) for m in val]
    assert np.isnan(measure(untold, train))


def test_the_divergence_is_one_bit_at_most() -> None:
    assert jensen_shannon(np.array([1, 0]), np.array([0, 1])) == 1.0
    half = jensen_shannon(np.array([1, 1]), np.array([1, 0]))
    assert half == pytest.approx(0.311278, abs=1e-6)  # H(3/4, 1/4) - 1/2
    assert np.isnan(jensen_shannon(np.array([0]), np.array([1])))


# The whole walk


def test_the_bundled_recipe_trains_samples_and_scores(
    jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    short = (
        f"domain.path={QM9}", "domain.composition=true", f"domain.properties=[{GAP}]",
        "model.width=32", "model.depth=2", "model.heads=2", "train.steps=4", "train.batch_size=8",
        "train.warmup_steps=0", "train.preview_samples=4", "sample.steps=3", "evaluate.samples=8",
    )  # fmt: skip
    answer = jitkit("train", "qm9-cpu", *short, "--run", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert (tmp_path / "run/samples/step-0.png").is_file()
    out = tmp_path / "out"
    answer = jitkit("sample", tmp_path / "run", "--n", 4, "--size", "9,12", "--out", out)
    assert answer.code == 0, answer.err
    assert read_all(out / "samples.xyz").sizes.tolist() == [9, 12, 9, 12]
    told = ("--cond", f"{GAP}=0.3", "--cond", "composition=4,1,0,1,0")
    answer = jitkit("sample", tmp_path / "run", "--n", 2, *told, "--out", tmp_path / "told")
    assert answer.code == 0, answer.err
    found = read_all(tmp_path / "told/samples.xyz")
    assert found.sizes.tolist() == [6, 6]
    assert found.properties[GAP] == pytest.approx([0.3, 0.3], rel=1e-5)
    answer = jitkit("sample", tmp_path / "run", "--size", "30")
    assert answer.code == 2 and "size 30 is out of range" in answer.err
    answer = jitkit("evaluate", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    scores = json.loads(answer.out)["scores"]
    assert scores["molecule_stability"]["floor"] >= 0.9
    assert scores[f"{GAP}_error"]["best"] == "low"


def test_a_model_samples_without_its_data(tmp_path: Path, qm9: Molecules) -> None:
    metadata = qm9.metadata()
    alone = Molecules(
        section(tmp_path / "gone", properties=[GAP, ALPHA], composition=True), metadata
    )
    field = alone.template(np.random.default_rng(0), {}, None)
    assert collate(alone.layout, alone.conditions, [field]).x.shape[1] == len(alone.layout.channels)
    with pytest.raises(DataError, match="no such file"):
        alone.items("train")


def test_readers_know_every_ending_that_the_key_names() -> None:
    assert {".sdf", ".xyz", ".npz", ".h5", ".csv"} <= set(readers.READERS)
