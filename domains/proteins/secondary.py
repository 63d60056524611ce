"""Secondary structure from CA positions (P-SEA, Labesse et al. 1997): helices and strands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.utils.types import Array

KINDS = ("helix", "strand")


def secondary_structure(chain: Backbone) -> Array:
    """Secondary structure of each residue, (L,): ``a`` helix, ``b`` strand, ``c`` neither.

    A segment has that of the whole chain: helices do not end where a chain is cropped.
    """
    if "secondary" not in chain.cache:
        chain.cache["secondary"] = _annotate(chain)
    codes: Array = chain.cache["secondary"]
    return codes


def _annotate(chain: Backbone) -> Array:
    if chain.segment_of is not None:
        whole, residues = chain.segment_of
        return secondary_structure(whole)[residues]
    return _p_sea(chain)


def _p_sea(chain: Backbone) -> Array:
    from biotite.structure import AtomArray, annotate_sse

    atoms = AtomArray(len(chain))
    atoms.coord = chain.alphas.astype(np.float32)
    atoms.res_id = chain.index + 1  # marks chain breaks
    atoms.res_name[:] = "ALA"  # any amino acid works
    atoms.atom_name[:] = "CA"
    atoms.chain_id[:] = "A"
    if len(chain) < 5:  # helices and strands are longer, and P-SEA looks five residues ahead
        return np.full(len(chain), "c")
    return annotate_sse(atoms)


def secondary_shares(chain: Backbone) -> Array:
    """Shares of residues in helices and in strands, (2,)."""
    codes = secondary_structure(chain)
    return np.array([(codes == "a").mean(), (codes == "b").mean()])


def all_secondary_shares(chains: Sequence[Backbone]) -> Array:
    """Shares of helices and strands of each chain, (chains, 2)."""
    return np.stack([secondary_shares(chain) for chain in chains])
