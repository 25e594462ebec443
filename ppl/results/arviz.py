"""Export to ArviZ: `InferenceData` before version 1.0, `xarray.DataTree` from then on."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ppl.errors import ResultError, message
from ppl.results._dtypes import widened
from ppl.results._names import Coords, Dims, check_coords, dimension_names, require

_SAMPLE = ("chain", "draw")

Sampled = Mapping[str, Shaped[np.ndarray, "chain draw *event"]]
Fixed = Mapping[str, Shaped[np.ndarray, "*event"]]


def to_arviz(
    *,
    posterior: Sampled,
    sample_stats: Sampled | None = None,
    log_likelihood: Sampled | None = None,
    posterior_predictive: Sampled | None = None,
    prior: Sampled | None = None,
    observed_data: Fixed | None = None,
    constant_data: Fixed | None = None,
    dims: Dims | None = None,
    coords: Coords | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Convert results to what the installed ArviZ reads.

    Meaning:
        A slash in an address becomes a dot in the name of the variable, because ArviZ's files and
        trees read it as a path; the attribute `address` of each variable keeps the original.

    Args:
        posterior: draws by address.
        sample_stats: sampler statistics, with ArviZ's names ("diverging", "energy", "lp").
        log_likelihood: by observed address, one number per observation.
        posterior_predictive: draws by address.
        prior: draws by address.
        observed_data: values by address, without chain and draw.
        constant_data: likewise.
        dims: names of leading event axes by address; the others become `<address>_dim_<k>`. Names
            beyond the axes of a log likelihood, which sums over them, are ignored.
        coords: coordinate values by dimension; by default positions from 0.
        attrs: attributes of the whole; numbers and strings.

    Returns:
        `arviz.InferenceData` or `xarray.DataTree`.

    Raises:
        ResultError: ArviZ is not installed, or dims, coords and shapes do not fit one another.
    """
    with warnings.catch_warnings():
        # ArviZ 0.x announces version 1.0 at import; the announcement is for users of ArviZ.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        az = require("arviz", "to_arviz")
    sampled = {
        "posterior": posterior,
        "sample_stats": sample_stats,
        "log_likelihood": log_likelihood,
        "posterior_predictive": posterior_predictive,
        "prior": prior,
    }
    fixed = {"observed_data": observed_data, "constant_data": constant_data}
    about = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "inference_library": "ppl",
        **(attrs or {}),
    }
    groups = {
        group: _dataset(group, variables, sample, dims or {}, coords or {}, about)
        for named, sample in ((sampled, _SAMPLE), (fixed, ()))
        for group, variables in named.items()
        if variables is not None
    }
    if int(az.__version__.partition(".")[0]) < 1:
        return az.InferenceData(attrs=about, **groups)
    tree = require("xarray", "to_arviz").DataTree.from_dict(groups)
    tree.attrs.update(about)
    return tree


def _dataset(
    group: str,
    variables: Mapping[str, np.ndarray],
    sample: tuple[str, ...],
    dims: Dims,
    coords: Coords,
    attrs: Mapping[str, Any],
) -> Any:
    arrays: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for address, value in variables.items():
        value = widened(np.asarray(value))
        if value.ndim < len(sample):
            raise _misfit(
                f"shape {value.shape} for {address!r} in {group}",
                needs="arrays of shape (chain, draw, *event)",
                fix="add a chain axis with x[None]",
            )
        shape = value.shape[len(sample) :]
        names = dimension_names(address, shape, dims, trim=group == "log_likelihood")
        check_coords(address, names, shape, coords)
        axes = [*sample, *(name if name in coords else name.replace("/", ".") for name in names)]
        for axis, size in zip(axes, value.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise _misfit(
                    f"length {size} for the dimension {axis!r} of {address!r} in {group}, and "
                    f"{sizes[axis]} in a variable before it",
                    needs="one length for each dimension",
                    fix=f"give the dimension of {address!r} a name of its own in dims",
                )
        variable = address.replace("/", ".")
        if variable in arrays:
            raise _misfit(
                f"two addresses in {group} that become {variable!r}",
                needs="addresses that differ when a slash reads as a dot",
                fix=f"rename {address!r}",
            )
        arrays[variable] = (axes, value, {"address": address})
    clashes = sorted(set(arrays) & set(sizes))
    if clashes:
        raise _misfit(
            f"{clashes[0]!r} for both a dimension and a variable in {group}",
            needs="different names for dimensions and variables",
            fix="rename that dimension in dims",
        )
    index = {axis: coords.get(axis, np.arange(size)) for axis, size in sizes.items()}
    return require("xarray", "to_arviz").Dataset(arrays, coords=index, attrs=dict(attrs))


def _misfit(what: str, *, needs: str, fix: str) -> ResultError:
    return ResultError(message(f"to_arviz got {what}", needs=needs, fix=fix))
