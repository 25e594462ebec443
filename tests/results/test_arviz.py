from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from ppl.errors import ResultError
from ppl.results.arviz import to_arviz

pytest.importorskip("arviz")


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return {
        "mu": rng.normal(size=(4, 50)),
        "theta": rng.normal(size=(4, 50, 3, 2)),
        "outer/tau": rng.exponential(size=(4, 50)).astype(np.float32),
        "n": rng.poisson(3.0, size=(4, 50)),
        "flag": rng.random((4, 50)) < 0.5,
    }


def groups(data):
    names = data.groups() if callable(data.groups) else [g.strip("/") for g in data.groups]
    return {name for name in names if name}


def test_type_follows_the_installed_version(draws):
    az = importlib.import_module("arviz")
    old = int(az.__version__.split(".")[0]) < 1
    expected = "InferenceData" if old else "DataTree"
    assert type(to_arviz(posterior=draws)).__name__ == expected


def test_values_dtypes_and_addresses_are_kept(draws):
    posterior = to_arviz(posterior=draws).posterior
    for address, x in draws.items():
        variable = posterior[address.replace("/", ".")]
        assert variable.dtype == x.dtype
        assert (variable.values == x).all()
        assert variable.attrs["address"] == address


def test_dims_and_coords(draws):
    data = to_arviz(
        posterior=draws,
        dims={"theta": ("school",)},
        coords={"school": ["A", "B", "C"], "unused": [1]},
    )
    theta = data.posterior["theta"]
    assert theta.dims == ("chain", "draw", "school", "theta_dim_1")
    assert theta.school.values.tolist() == ["A", "B", "C"]
    assert theta.theta_dim_1.values.tolist() == [0, 1]
    assert theta.draw.values.tolist() == list(range(50))
    assert (theta.sel(school="B").values == draws["theta"][:, :, 1]).all()


def test_all_groups_and_attributes(draws):
    rng = np.random.default_rng(1)
    data = to_arviz(
        posterior=draws,
        sample_stats={"diverging": np.zeros((4, 50), bool)},
        log_likelihood={"y": rng.normal(size=(4, 50, 3))},
        posterior_predictive={"y": rng.normal(size=(4, 50, 3, 2))},
        prior={"mu": rng.normal(size=(1, 7))},
        observed_data={"y": rng.normal(size=(3, 2))},
        constant_data={"sigma": np.array(2.0), "n": np.arange(3)},
        dims={"y": ("school", "side"), "theta": ("school",)},
        attrs={"sampling_time": 1.5},
    )
    assert groups(data) == {
        *("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior"),
        *("observed_data", "constant_data"),
    }
    assert data.log_likelihood["y"].dims == ("chain", "draw", "school")
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "school", "side")
    assert data.observed_data["y"].dims == ("school", "side")
    assert data.constant_data["sigma"].dims == ()
    assert data.prior["mu"].shape == (1, 7)
    assert data.attrs["sampling_time"] == 1.5
    assert data.posterior.attrs["inference_library"] == "ppl"


def test_arviz_can_summarise_the_result(draws):
    az = importlib.import_module("arviz")
    table = az.summary(to_arviz(posterior=draws), var_names=["mu", "outer.tau"])
    assert list(table.index) == ["mu", "outer.tau"]


def test_files_can_be_written(draws, tmp_path):
    pytest.importorskip("h5netcdf")
    pytest.importorskip("h5py")
    data = to_arviz(posterior=draws, sample_stats={"diverging": np.ones((4, 50), bool)})
    data.to_netcdf(str(tmp_path / "run.nc"))
    assert (tmp_path / "run.nc").stat().st_size > 0


def test_bfloat16_is_widened_exactly():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.linspace(-3, 3, 20).reshape(2, 10).astype(ml_dtypes.bfloat16)
    values = to_arviz(posterior={"x": x}).posterior["x"].values
    assert values.dtype == np.float32
    assert (values == x.astype(np.float32)).all()


def test_what_does_not_fit_is_named(draws):
    with pytest.raises(ResultError, match="at most one name"):
        to_arviz(posterior=draws, dims={"mu": ("school",)})
    with pytest.raises(ResultError, match="2 values for 'school'"):
        to_arviz(posterior=draws, dims={"theta": ("school",)}, coords={"school": [1, 2]})
    with pytest.raises(ResultError, match=r"length 2 for the dimension 'school' of 'theta'"):
        to_arviz(
            posterior={"a": np.zeros((4, 50, 3)), "theta": draws["theta"][:, :, :2]},
            dims={"theta": ("school",), "a": ("school",)},
        )
    with pytest.raises(ResultError, match="length 7 for the dimension 'draw'"):
        to_arviz(posterior={"mu": draws["mu"], "x": np.zeros((4, 7))})
    with pytest.raises(ResultError, match=r"become 'outer\.tau'"):
        to_arviz(posterior={**draws, "outer.tau": draws["mu"]})
    with pytest.raises(ResultError, match=r"\(50,\) for 'mu'"):
        to_arviz(posterior={"mu": np.zeros(50)})
    with pytest.raises(ResultError, match="different names for different axes"):
        to_arviz(posterior=draws, dims={"theta": ("a", "a")})
    with pytest.raises(ResultError, match="'mu' for both a dimension and a variable"):
        to_arviz(posterior=draws, dims={"theta": ("mu",)})


def test_missing_arviz_says_how_to_install_it(draws, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ResultError, match="pip install arviz"):
        to_arviz(posterior=draws)
