"""Domain molecules: readers, bonds, encoding, conditions, symmetry, output, metrics, recipe."""

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
from jitkit.domains.molecules.readers import read_molecules
from jitkit.domains.molecules.sdf import read_sdf
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.domains.molecules.writers import sdf_of, write_molecules
from jitkit.errors import BadItem, ConditionError, DataError
from jitkit.metrics.frechet import jensen_shannon
from jitkit.sampling.generate import sample_items
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
    """A molecule in 3-D as embedded by RDKit."""
    with rdBase.BlockLogs():
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    return Molecule(
        np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]),
        mol.GetConformer().GetPositions(),
        np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()]),
    )


def same(a: PackedMolecules, b: PackedMolecules, tolerance: float = 1e-4) -> bool:
    return (
        np.array_equal(a.starts, b.starts)
        and np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.charges, b.charges)
        and bool(np.allclose(a.positions, b.positions, atol=tolerance, rtol=0))
    )


# Files


def test_sdf_is_read_as_by_rdkit() -> None:
    ours = list(read_sdf(KINASE))
    theirs = list(Chem.SDMolSupplier(str(KINASE), removeHs=False, sanitize=False))
    assert len(ours) == len(theirs) == 47
    for item, mol in zip(ours, theirs, strict=True):
        assert isinstance(item, Molecule)
        assert np.allclose(item.positions, mol.GetConformer().GetPositions(), atol=1e-6)
        assert item.numbers.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        assert item.charges.tolist() == [atom.GetFormalCharge() for atom in mol.GetAtoms()]
        assert all(float(mol.GetProp(name)) == v for name, v in item.properties.items())


def test_v3000_is_read_as_v2000(tmp_path: Path) -> None:
    source = list(Chem.SDMolSupplier(str(KINASE), removeHs=False))[:20]
    source.append(Chem.AddHs(Chem.MolFromSmiles("C[N+](C)(C)CC(=O)[O-]")))
    rdDistGeom.EmbedMolecule(source[-1], randomSeed=0)
    for force in (False, True):
        writer = Chem.SDWriter(str(tmp_path / f"{force}.sdf"))
        writer.SetForceV3000(force)
        for each in source:
            writer.write(each)
        writer.close()
    old, new = (read_molecules(section(tmp_path / f"{force}.sdf")) for force in (False, True))
    assert "V3000" in (tmp_path / "True.sdf").read_text()
    assert same(old, new) and old.charges.any()


def test_every_format_holds_the_same_molecules(tmp_path: Path, qm9: Molecules) -> None:
    molecules = list(qm9.items("val"))[:12]
    write_molecules(molecules, tmp_path / "out")
    wanted = read_molecules(section(tmp_path / "out" / "samples.xyz"))
    assert len(wanted) == 12
    assert np.allclose(wanted.properties[GAP], [m.properties[GAP] for m in molecules])
    assert same(read_molecules(section(tmp_path / "out" / "samples.sdf")), wanted)

    most = max(len(m) for m in molecules)
    numbers, positions = np.zeros((12, most), int), np.full((12, most, 3), np.nan)
    for i, m in enumerate(molecules):
        numbers[i, : len(m)], positions[i, : len(m)] = m.numbers, m.positions
    gap = wanted.properties[GAP]
    np.savez(tmp_path / "padded.npz", Z=numbers, R=positions, gap=gap)
    flat = np.concatenate([m.positions for m in molecules])
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["coords"], file["num_atoms"] = flat / 0.529177210903, wanted.sizes
        file["atomic_numbers"] = np.concatenate([m.numbers for m in molecules])
        file["gap"] = gap
    padded = read_molecules(section(tmp_path / "padded.npz"))
    packed = read_molecules(section(tmp_path / "flat.h5", units="bohr"))
    assert same(padded, wanted) and same(packed, wanted)
    assert np.allclose(padded.properties["gap"], gap) and np.allclose(packed.properties["gap"], gap)


def test_frames_of_one_molecule_may_share_atomic_numbers(tmp_path: Path) -> None:
    """As in MD17: positions (frames, atoms, 3) with the atomic numbers of one frame."""
    water = molecule("O")
    np.savez(tmp_path / "md.npz", z=water.numbers, R=np.stack([water.positions] * 5), E=np.ones(5))
    frames = read_molecules(section(tmp_path / "md.npz"))
    assert frames.sizes.tolist() == [3] * 5 and frames.properties["E"].tolist() == [1.0] * 5


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


def test_an_original_qm9_file_is_read(tmp_path: Path) -> None:
    for name in ("dsgdb9nsd_000001", "dsgdb9nsd_000002"):
        (tmp_path / f"{name}.xyz").write_text(QM9_XYZ)
    methane = read_molecules(section(tmp_path))
    assert methane.sizes.tolist() == [5, 5] and methane.smiles == ["C", "C"]
    assert methane.positions[2, 2] == pytest.approx(2.765748e-4)
    assert methane.properties["gap"][0] == 0.5048 and methane.properties["Cv"][0] == 6.469
    assert methane.names[0] == "dsgdb9nsd_000001"


def test_mathematica_exponents_in_a_table_are_powers_of_ten(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("name,Elements,XYZ_Ang,gap\nwater,\"['O','H','H']\","
                    '"[[0.,0.,1.2*^-6],[.96,0.,0.],[-.24,.93,0.]]",3.*^-1\n')  # fmt: skip
    water = read_molecules(section(file))
    assert water.positions[0, 2] == pytest.approx(1.2e-6)
    assert water.properties["gap"].tolist() == [0.3] and water.names == ["water"]


WATER = "O 0 0 0\nH .96 0 0\nH -.24 .93 0\n"
BAD: dict[str, tuple[str, str, str]] = {
    "too few atoms": ("a.xyz", "4\n\n" + WATER, "4 atoms declared, 3 found"),
    "too many": ("a.xyz", "2\n\n" + WATER, "more lines than atoms: 'H -.24 .93 0'"),
    "no element": (
        "a.xyz",
        "3\n\n" + WATER.replace("O", "Q"),
        "'Q 0 0 0' does not begin with an element",
    ),
    "a word for a number": ("a.xyz", "3\n\n" + WATER.replace(".93", "up"), "no number in column 3"),
    "not finite": ("a.xyz", "3\n\n" + WATER.replace(".93", "nan"), "that is not finite"),
    "infinite": ("a.xyz", "3\n\n" + WATER.replace(".93", "inf"), "that is not finite"),
    "overlapping atoms": ("a.xyz", "3\n\n" + WATER.replace("-.24 .93", ".96 .001"), "0.001 apart"),
    "a crystal": ("a.xyz", '3\nLattice="9 0 0 0 9 0 0 0 9"\n' + WATER, "a periodic cell"),
    "no atoms": ("a.xyz", "0\n\n", "no atoms"),
    "empty": ("a.xyz", "", "a.xyz: no molecules in it"),
    "an empty sdf": ("a.sdf", "", "a.sdf: no molecules in it"),
    "no sdf": ("a.sdf", "hello\nworld\n", "no counts of atoms and bonds in its fourth line"),
    "no npz": ("a.npz", "hello", "cannot be read as .npz"),
    "no hdf5": ("a.h5", "hello", "cannot be read as HDF5"),
    "nothing known": ("a.txt", "hello", "molecules are read from .sdf.*not '.txt'"),
    "no columns": ("a.csv", "a,b\n1,2\n", "no molecules in it"),
    "a torn row": (
        "a.csv",
        "Elements,XYZ_Ang\n\"['H']\"\n",
        "line 2: 1 cells in a table of 2 columns",
    ),
    "atoms and positions": (
        "a.csv",
        "Elements,XYZ_Ang\n\"['H','H']\",\"[[0,0,1]]\"\n",
        "line 2: 3 numbers for the positions of 2 atoms",
    ),
    "nanometres": ("a.xyz", "3\n\nO 0 0 0\nH .096 0 0\nH -.024 .093 0\n", "units=nanometer"),
    "bohr": ("a.xyz", "3\n\nO 0 0 0\nH 1.81 0 0\nH -.45 1.76 0\n", "domain.units=bohr"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_unreadable_file_raises_one_clear_error(what: str, tmp_path: Path) -> None:
    name, text, why = BAD[what]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=why):
        read_molecules(section(tmp_path / name))


def test_planar_molecules_are_read_and_drawings_refused(tmp_path: Path) -> None:
    """RDKit's 2-D drawings are refused; planar benzene marked as 3-D is read."""
    with pytest.raises(DataError, match=r"no molecules; the first: .*a drawing \(2-D\)"):
        read_molecules(section(DRAWN))
    benzene = molecule("c1ccccc1")
    flat = Molecule(benzene.numbers, _in_plane(benzene.positions), benzene.charges)
    write_molecules([flat], tmp_path)
    text = (tmp_path / "samples.sdf").read_text()
    assert read_molecules(section(tmp_path / "samples.sdf")).sizes.tolist() == [12]
    (tmp_path / "unmarked.sdf").write_text(text.replace("3D", "  ", 1))
    with pytest.raises(DataError, match="a drawing"):
        read_molecules(section(tmp_path / "unmarked.sdf"))


def _in_plane(positions: np.ndarray) -> np.ndarray:
    centred = positions - positions.mean(axis=0)
    rotated = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    return rotated * [1, 1, 0]


def test_missing_hydrogens_are_an_error_or_dropped(tmp_path: Path) -> None:
    ethanol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(ethanol, randomSeed=0)
    for name, mol in (("all", ethanol), ("heavy", Chem.RemoveHs(ethanol))):
        Chem.MolToMolFile(mol, str(tmp_path / f"{name}.mol"))
    with pytest.raises(DataError, match=r"5 hydrogens are missing.*AddHs.*hydrogens=drop"):
        read_molecules(section(tmp_path / "heavy.mol"))
    dropped = [
        read_molecules(section(tmp_path / f"{n}.mol", hydrogens="drop")) for n in ("all", "heavy")
    ]
    assert same(dropped[0], dropped[1]) and dropped[0].numbers.tolist() == [6, 6, 8]


def test_invalid_molecules_are_skipped_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "3\n\n" + WATER
    text = good + BAD["too few atoms"][1] + good + BAD["not finite"][1] + BAD["too many"][1] + good
    (tmp_path / "many.xyz").write_text(text)
    assert len(read_molecules(section(tmp_path))) == 3
    assert "3 of 6 molecules are skipped; the first: many:1: 4 atoms" in capsys.readouterr().err


def test_missing_files_and_properties_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder; domain.path=PATH"):
        read_molecules(section(tmp_path / "none"))
    with pytest.raises(DataError, match="has no molecule files"):
        read_molecules(section(tmp_path))
    with pytest.raises(DataError, match="domain.path is missing.*package:qm9pack"):
        read_molecules(MoleculesSection(name="molecules"))
    with pytest.raises(DataError, match="'nowhere' is not installed: pip install"):
        read_molecules(section("package:nowhere/data"))
    with pytest.raises(DataError, match=rf"no property 'gap'; it has {ALPHA}, {GAP}"):
        Molecules(section(properties=["gap"])).items("train")
    with pytest.raises(DataError, match=r"3 molecules cannot be split.*held_out=0.01"):
        (tmp_path / "few.xyz").write_text(("3\n\n" + WATER) * 3)
        Molecules(section(tmp_path, held_out=0.01)).items("train")


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
def test_bond_orders_by_distance_are_correct_for_simple_molecules(
    smiles: str, orders: Mapping[int, int]
) -> None:
    matrix = bond_orders(molecule(smiles))
    assert np.array_equal(matrix, matrix.T)
    assert Counter(matrix[np.triu_indices(len(matrix))].tolist()) - Counter({0: 10**6}) == orders
    assert stable_atoms(molecule(smiles)).all()


def test_charges_shift_the_allowed_valence() -> None:
    for smiles in ("[NH4+]", "[OH-]", "[OH3+]", "C[NH3+]"):
        ion = molecule(smiles)
        assert stable_atoms(ion).all(), smiles
        neutral = Molecule(ion.numbers, ion.positions, 0 * ion.charges)
        assert not stable_atoms(neutral).all(), smiles


def test_real_molecules_are_stable_and_perturbed_ones_are_not(qm9: Molecules) -> None:
    """QM9 has 99 % stable atoms and 95 % stable molecules; noise of 0.2 angstrom breaks them."""
    atoms = [stable_atoms(m) for m in qm9.items("train")]
    assert np.concatenate(atoms).mean() == pytest.approx(0.99, abs=0.006)
    assert np.mean([a.all() for a in atoms]) == pytest.approx(0.95, abs=0.02)
    rng = np.random.default_rng(0)
    perturbed = [
        Molecule(m.numbers, m.positions + 0.2 * rng.standard_normal((len(m), 3)), m.charges)
        for m in qm9.items("val")
    ]
    assert np.concatenate([stable_atoms(m) for m in perturbed]).mean() < 0.6


@pytest.mark.slow
def test_all_of_qm9_has_the_stability_given_in_the_paper() -> None:
    """99.0 % of atoms and 95.2 % of molecules (arXiv:2203.17003, table 1)."""
    pytest.importorskip("qm9pack")
    atoms = [stable_atoms(m) for m in read_molecules(section("package:qm9pack/data"))]
    assert len(atoms) == 130_831
    assert round(np.concatenate(atoms).mean(), 2) == 0.99
    assert round(np.mean([a.all() for a in atoms]), 2) == 0.95


# Encoding, symmetry


def test_random_rotations_are_proper_and_uniform() -> None:
    """Rotated axes are uniform on the sphere; angles follow the Haar measure."""
    drawn = np.stack([random_rotation(np.random.default_rng(i)) for i in range(3000)])
    assert np.allclose(drawn @ drawn.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(drawn), 1)
    for k in range(9):  # coordinates of uniform points on a sphere are uniform in (-1, 1)
        assert stats.kstest(drawn.reshape(-1, 9)[:, k], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    angle = np.arccos(((np.trace(drawn, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))
    haar = stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi)
    assert haar.pvalue > 1e-3


def test_training_rotates_positions_and_changes_nothing_else(qm9: Molecules) -> None:
    item = qm9.items("train")[3]
    plain = qm9.encode(item)
    rotated = qm9.encode(item, np.random.default_rng(0))
    assert not torch.allclose(plain.values[:3], rotated.values[:3], atol=0.1)
    assert torch.equal(plain.values[3:], rotated.values[3:])
    torch.testing.assert_close(
        torch.cdist(plain.values[:3].T, plain.values[:3].T),
        torch.cdist(rotated.values[:3].T, rotated.values[:3].T),
        atol=1e-3,
        rtol=0,
    )
    unrotated = Molecules(section(rotate=False)).encode(item, np.random.default_rng(0))
    assert torch.equal(unrotated.values, plain.values)


def rods(path: Path, **keys: Any) -> Molecules:
    """Linear molecules along x: H-C-H of one length, H-C-N of another."""
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
def test_samples_have_uniform_orientation_if_training_rotates_the_data(
    rotate: bool, tmp_path: Path
) -> None:
    """All training molecules are along x. With random rotations the directions of samples are
    uniform on the sphere: the squared x component has mean 1/3, standard deviation 0.298. Without
    rotations it is nearly 1."""
    domain = rods(tmp_path, rotate=rotate)
    # isotropy has to be learned: after 120 steps the error is 0.07 of 1/3
    run = jk.train(TINY, run=tmp_path / "run", domain=domain)
    denoiser = jk.load(run, domain=domain)
    n = 100
    settings = SampleSection(steps=10, method="euler")
    samples = sample_items(denoiser, n, conditioning_for(denoiser, n), settings)
    directions = []
    for item in samples:
        far = np.unravel_index(item.distances.argmax(), item.distances.shape)
        along = item.positions[far[0]] - item.positions[far[1]]
        directions.append(along / np.sqrt(along @ along))
    squares = (np.stack(directions) ** 2).mean(axis=0)
    if rotate:
        assert np.abs(squares - 1 / 3).max() < 4 * 0.298 / np.sqrt(n)
    else:
        assert squares[0] > 0.8


# Sizes and conditions of samples


def drawn(domain: Molecules, cond: Mapping[str, Any], size: int | None = None) -> list[Any]:
    cond = {k: v if v is None else torch.tensor(v) for k, v in cond.items()}
    return [domain.template(np.random.default_rng(i), cond, size) for i in range(200)]


def test_sizes_and_properties_are_drawn_jointly_from_training_molecules(qm9: Molecules) -> None:
    templates = drawn(qm9, {})
    sizes = np.array([field.values.shape[1] for field in templates])
    real = qm9.items("train").sizes
    assert stats.ks_2samp(sizes, real).pvalue > 1e-3
    alpha = [float(field.cond[ALPHA][0]) for field in templates]
    assert np.corrcoef(sizes, alpha)[0, 1] > 0.6  # larger molecules are easier to polarize
    counts = torch.stack([field.cond["composition"] for field in templates])
    scale = qm9.metadata()["told"]["composition"]
    atoms = counts.double() * torch.tensor(scale["std"]) + torch.tensor(scale["mean"])
    assert atoms.sum(dim=1).round().tolist() == sizes.tolist()


def test_templates_have_the_requested_conditions(qm9: Molecules) -> None:
    scale = qm9.metadata()["told"]
    small = drawn(qm9, {}, size=12)
    assert {field.values.shape[1] for field in small} == {12}
    water = drawn(qm9, {"composition": [2.0, 0.0, 0.0, 1.0, 0.0]})[
        0
    ]  # H, C, N, O, F; not in the data
    assert water.values.shape[1] == 3 and water.cond[GAP].isnan().all()
    low, high = drawn(qm9, {ALPHA: [50.0]}), drawn(qm9, {ALPHA: [95.0]})
    standardized = (50.0 - scale[ALPHA]["mean"][0]) / scale[ALPHA]["std"][0]
    assert all(f.cond[ALPHA].item() == pytest.approx(standardized, rel=1e-5) for f in low)
    assert all(field.cond[GAP].isnan().all() for field in low)
    mean = [np.mean([field.values.shape[1] for field in fields]) for fields in (low, high)]
    assert mean[1] - mean[0] > 5
    dropped = drawn(qm9, {ALPHA: None, "composition": None})
    assert all(f.cond[ALPHA].isnan().all() and f.cond["composition"].isnan().all() for f in dropped)
    assert not any(field.cond[GAP].isnan().any() for field in dropped)


def test_contradictory_conditions_are_refused(qm9: Molecules) -> None:
    with pytest.raises(ConditionError, match="12 and 9 atoms are both requested"):
        drawn(qm9, {"num_atoms": [9.0]}, size=12)
    with pytest.raises(ConditionError, match="composition: 1.5 is not a number of atoms"):
        drawn(qm9, {"composition": [2.0, 1.5, 0.0, 0.0, 0.0]})
    with pytest.raises(ConditionError, match="no training molecule matches"):
        drawn(qm9, {"composition": [np.nan, 25.0, np.nan, np.nan, np.nan]})
    with pytest.raises(ConditionError, match="99 atoms are out of range.*up to 2"):
        drawn(qm9, {"composition": [99.0, 0.0, 0.0, 0.0, 0.0]})


# Output


def broken(count: int) -> list[Molecule]:
    """Random atoms, with and without charges, 1 to 24 per molecule."""
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


def test_rdkit_reads_every_written_sdf(
    tmp_path: Path, qm9: Molecules, capsys: pytest.CaptureFixture[str]
) -> None:
    ions = [molecule(smiles) for smiles in ("C[N+](C)(C)C", "CC(=O)[O-]", "[NH3+]CC(=O)[O-]")]
    items = [*list(qm9.items("val"))[:30], *ions, *broken(60)]
    write_molecules(items, tmp_path)
    with rdBase.BlockLogs():
        file = str(tmp_path / "samples.sdf")
        mols = list(Chem.SDMolSupplier(file, removeHs=False, sanitize=False))
        bonded = [m.GetProp("bonds") == "perceived" for m in mols]
        sanitized = list(Chem.SDMolSupplier(file))
    assert all(m for m, b in zip(sanitized, bonded, strict=True) if b)
    for item, mol in zip(items, mols, strict=True):
        assert item.numbers.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        assert np.allclose(item.positions, mol.GetConformer().GetPositions(), atol=1e-4)
    assert all(bonded[30:33]) and sum(bonded[:30]) >= 27 and not all(bonded[33:])
    for item, mol in zip(items[30:33], mols[30:33], strict=True):
        assert item.charges.tolist() == [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    without = [m.GetNumBonds() for m, b in zip(mols, bonded, strict=True) if not b]
    assert set(without) == {0}
    warning = f"the bonds of {len(without)} of {len(items)} molecules cannot be determined"
    assert warning in capsys.readouterr().err
    xyz, sdf = (read_all(tmp_path / f"samples.{end}") for end in ("xyz", "sdf"))
    unbonded = np.repeat(~np.array(bonded), sdf.sizes)  # RDKit moves charges to suit the bonds
    assert same(xyz, replace(sdf, charges=np.where(unbonded, sdf.charges, xyz.charges)))
    assert not list(tmp_path.glob("*.partial"))


def read_all(path: Path) -> PackedMolecules:
    """Molecules of a file, including implausible ones."""
    from jitkit.domains.molecules.molecule import pack_molecules
    from jitkit.domains.molecules.xyz import read_xyz

    items = list(read_xyz(path) if path.suffix == ".xyz" else read_sdf(path, hydrogens=False))
    assert not [m for m in items if isinstance(m, BadItem)]
    return pack_molecules([m for m in items if isinstance(m, Molecule)])


def test_a_large_molecule_is_written_as_v3000(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(11.0)] * 3), axis=-1).reshape(-1, 3)[:1100] * 4
    large = Molecule(np.full(1100, 18), grid, np.zeros(1100, int))
    file = tmp_path / "large.sdf"
    file.write_text(sdf_of(large, "argon", bonded=False))
    (mol,) = Chem.SDMolSupplier(str(file), removeHs=False)
    assert mol.GetNumAtoms() == 1100
    assert read_molecules(section(file, units="angstrom")).sizes.tolist() == [1100]


def test_without_rdkit_files_have_no_bonds_and_its_metrics_are_missing(
    tmp_path: Path, qm9: Molecules, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("jitkit.domains.molecules.chemistry.find_spec", lambda name: None)
    write_molecules(list(qm9.items("val"))[:3], tmp_path)
    assert "RDKit is not installed (pip install 'jitkit[molecules]')" in capsys.readouterr().err
    assert (tmp_path / "samples.sdf").read_text().count("\nnone\n") == 3
    names = set(qm9.scores())
    assert "atom_stability" in names and not names & {"validity", "novelty", "valid_and_unique"}
    with pytest.raises(DataError, match="validity needs RDKit"):
        chemistry.check_rdkit("validity")


def test_the_preview_shows_all_molecules_and_marks_unstable_atoms(qm9: Molecules) -> None:
    good, bad = qm9.items("val")[0], broken(3)[0]
    one, four = qm9.preview([good]), qm9.preview([good, bad, good, bad])
    assert one.size[0] < four.size[0] <= 4 * one.size[0]
    pink = np.array([255, 59, 127])
    is_marked = [
        (np.abs(np.asarray(qm9.preview([m])).astype(int) - pink).sum(axis=2) < 60).any()
        for m in (molecule("CCO"), bad)
    ]
    assert is_marked == [False, True]


# Scores


def test_metrics_of_copies_duplicates_and_random_atoms_are_as_expected(qm9: Molecules) -> None:
    train, val = list(qm9.items("train")), list(qm9.items("val"))
    scores = qm9.scores()
    assert scores["novelty"](train[:40], train) <= 0.05  # SMILES are perceived from distances
    assert scores["novelty"](val[:40], train) == 1.0
    assert scores["validity"](val, train) >= 0.95
    assert scores["valid_and_unique"]([val[0]] * 10, train) == pytest.approx(0.1)
    for name in ("bond_length", "angle", "element", "size"):
        metric = scores[f"{name}_divergence"]
        assert metric(train, train) == pytest.approx(0, abs=1e-9)
        assert metric(val, train) < 0.2
        assert getattr(metric, "best", None) == "low"
    random = broken(60)
    assert scores["validity"](random, train) < 0.2
    assert scores["element_divergence"](random, train) > 0.2
    assert scores["size_divergence"]([molecule("O")] * 5, train) == 1.0
    assert np.isnan(scores["novelty"](random[:1], train))


def test_validity_requires_a_connected_molecule() -> None:
    water = molecule("O")
    two = Molecule(
        np.tile(water.numbers, 2),
        np.concatenate((water.positions, water.positions + 9)),
        np.tile(water.charges, 2),
    )
    assert chemistry.is_valid(water) and not chemistry.is_valid(two)
    assert chemistry.canonical_smiles(water) == "O" and chemistry.canonical_smiles(two) is None


def test_molecules_with_isolated_protons_are_invalid() -> None:
    methane = molecule("C")
    far = methane.positions + np.outer(methane.numbers == 1, [1, 1, 1]) * 4.0
    assert chemistry.perceive_bonds(methane) is not None
    assert chemistry.perceive_bonds(Molecule(methane.numbers, far, methane.charges)) is None


def test_smiles_from_distances_equal_those_of_the_file(qm9: Molecules) -> None:
    names = [
        (chemistry.canonical_smiles(m), chemistry.smiles_from_file(m)) for m in qm9.items("val")
    ]
    assert np.mean([perceived == in_file for perceived, in_file in names]) >= 0.9


def test_the_property_error_of_real_molecules_is_the_predictors_error(qm9: Molecules) -> None:
    """With true properties the error is the predictor's; with swapped ones it is larger."""
    train, val = list(qm9.items("train")), list(qm9.items("val"))
    metric = qm9.scores()[f"{ALPHA}_error"]
    spread = np.std([m.properties[ALPHA] for m in val])
    error = metric(val, train)
    assert 0 < error < 0.25 * spread
    swapped = [
        Molecule(m.numbers, m.positions, m.charges, other.properties)
        for m, other in zip(val, val[1:] + val[:1], strict=True)
    ]
    assert metric(swapped, train) > 3 * error
    unconditional = [Molecule(m.numbers, m.positions, m.charges) for m in val]
    assert np.isnan(metric(unconditional, train))


def test_the_divergence_is_at_most_one_bit() -> None:
    assert jensen_shannon(np.array([1, 0]), np.array([0, 1])) == 1.0
    half = jensen_shannon(np.array([1, 1]), np.array([1, 0]))
    assert half == pytest.approx(0.311278, abs=1e-6)  # H(3/4, 1/4) - 1/2
    assert np.isnan(jensen_shannon(np.array([0]), np.array([1])))


# From recipe to scores


def test_the_bundled_recipe_trains_samples_and_evaluates(
    jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    short = (
        f"domain.path={QM9}", "domain.composition=true", f"domain.properties=[{GAP}]",
        "model.width=32", "model.depth=2", "model.heads=2", "train.steps=4", "train.batch_size=8",
        "train.warmup_steps=0", "train.preview_samples=4", "sample.steps=3", "evaluate.samples=8",
    )  # fmt: skip
    result = jitkit("train", "qm9-cpu", *short, "--run", tmp_path / "run")
    assert result.code == 0, result.err
    assert (tmp_path / "run/samples/step-0.png").is_file()
    out = tmp_path / "out"
    result = jitkit("sample", tmp_path / "run", "--n", 4, "--size", "9,12", "--out", out)
    assert result.code == 0, result.err
    assert read_all(out / "samples.xyz").sizes.tolist() == [9, 12, 9, 12]
    cond = ("--cond", f"{GAP}=0.3", "--cond", "composition=4,1,0,1,0")
    result = jitkit("sample", tmp_path / "run", "--n", 2, *cond, "--out", tmp_path / "conditional")
    assert result.code == 0, result.err
    samples = read_all(tmp_path / "conditional/samples.xyz")
    assert samples.sizes.tolist() == [6, 6]
    assert samples.properties[GAP] == pytest.approx([0.3, 0.3], rel=1e-5)
    result = jitkit("sample", tmp_path / "run", "--size", "30")
    assert result.code == 2 and "size 30 is out of range" in result.err
    result = jitkit("evaluate", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    scores = json.loads(result.out)["scores"]
    assert scores["molecule_stability"]["floor"] >= 0.9
    assert scores[f"{GAP}_error"]["best"] == "low"


def test_a_model_samples_without_its_data(tmp_path: Path, qm9: Molecules) -> None:
    metadata = qm9.metadata()
    domain = Molecules.from_metadata(
        section(tmp_path / "gone", properties=[GAP, ALPHA], composition=True), metadata
    )
    field = domain.template(np.random.default_rng(0), {}, None)
    x = collate(domain.layout, domain.conditions, [field]).x
    assert x.shape[1] == len(domain.layout.channels)
    with pytest.raises(DataError, match="no such file"):
        domain.items("train")


def test_there_is_a_reader_for_every_suffix_in_the_help_text() -> None:
    assert {".sdf", ".xyz", ".npz", ".h5", ".csv"} <= set(readers.READERS)
