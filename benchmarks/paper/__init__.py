"""The tables and figures of the JiT paper (Li & He 2025, arXiv:2511.13720), in small.

```
toy.py          figure 2: two dimensions hidden in many, an MLP, three predictions (and toypage.py)
pairs.py        table 2: nine pairs of prediction and loss, at a large and at a small patch
noise.py        table 3: the shift of the noise level
bottleneck.py   figure 4: the width between a patch and its token
parts.py        table 4: parts of the transformer, one by one
cost.py         table 5: resolution and patch double together
precondition.py table 10: pre-conditioning
```

Each of these says which models must be trained (`trainings.py`; the toy has its own) and makes a
page of their results (`pages.py`); `jobs.py` trains what is not there yet, `pictures.py` prepares
the pictures, `features.py` and `measures.py` measure, `drawing.py` draws.
"""
