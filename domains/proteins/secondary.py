"""Helices and strands of a chain, from its CA alone (P-SEA, Labesse et al. 1997)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.utils.types import Array

KINDS = ("helix", "strand")


def secondary(chain: Backbone) -> Array:
    """What each residue is part of, (L,): ``a`` a helix, ``b`` a strand, ``c`` neither.

    Of a piece it is what the whole chain has there: helices do not end at a cut.
    """
    if "secondary" not in chain.kept:
        chain.kept["secondary"] = _annotated(chain)
    found: Array = chain.kept["secondary"]
    return found


def _annotated(chain: Backbone) -> Array:
    if chain.piece_of is not None:
        whole, own = chain.piece_of
        return secondary(whole)[own]
    return _by_distances(chain)


def _by_distances(chain: Backbone) -> Array:
    from biotite.structure import AtomArray, annotate_sse

    atoms = AtomArray(len(chain))
    atoms.coord = chain.alphas.astype(np.float32)
    atoms.res_id = chain.index + 1  # breaks are seen by it
    atoms.res_name[:] = "ALA"  # any amino acid does
    atoms.atom_name[:] = "CA"
    atoms.chain_id[:] = "A"
    if len(chain) < 5:  # no helix and no strand is as short, and P-SEA looks five residues ahead
        return np.full(len(chain), "c")
    return annotate_sse(atoms)


def contents(chain: Backbone) -> Array:
    """Shares of residues in helices and in strands, (2,)."""
    found = secondary(chain)
    return np.array([(found == "a").mean(), (found == "b").mean()])


def all_contents(chains: Sequence[Backbone]) -> Array:
    """The same of many, (chains, 2)."""
    return np.stack([contents(chain) for chain in chains])
