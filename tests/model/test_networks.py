"""The networks: outputs of the encoder, initialization of the decoder, and effects of covariates."""

from typing import Any

import pytest
import torch
from torch import Tensor

from celldial.data.cells import Cells
from celldial.model.latents import Gaussian
from celldial.model.networks import DECODERS, HEAD_SCALE, Decoder, DecoderName, Encoder, LayerSizes
from helpers.simulate import simulate_cells

N_FEATURES = 20
SIZES = pytest.mark.parametrize("n_layers", [1, 2])
KINDS = pytest.mark.parametrize("kind", DECODERS)


def make_encoder(cells: Cells, n_layers: int = 1, dropout_rate: float = 0.5) -> Encoder:
    torch.manual_seed(0)
    n_categories = [int(code_c.max()) + 1 for code_c in cells.category_ck.unbind(-1)]
    encoder = Encoder(N_FEATURES, 6, LayerSizes(n_categories, cells.continuous_ck.shape[1], 8, n_layers), dropout_rate)
    encoder.initialize(cells.counts["rna"], cells.library_size["rna"])
    return encoder


def make_decoder(
    n_layers: int = 1,
    n_heads: int = 1,
    n_categories: Any = (),
    n_continuous: int = 0,
    kind: DecoderName = "network",
    n_latent: int = 3,
) -> Decoder:
    torch.manual_seed(0)
    return Decoder(N_FEATURES, n_heads, Gaussian(n_latent), LayerSizes(n_categories, n_continuous, 8, n_layers), kind)


def encode(encoder: Encoder, cells: Cells) -> Tensor:
    with torch.no_grad():
        return encoder(cells.counts["rna"], cells.library_size["rna"], cells.category_ck, cells.continuous_ck)


@SIZES
def test_encoder_outputs_do_not_depend_on_other_cells(n_layers: int) -> None:
    cells = simulate_cells(covariates=True)
    encoder = make_encoder(cells, n_layers).eval()
    parameters_cp = encode(encoder, cells)
    assert parameters_cp.shape == (60, 6)
    order_c = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode(encoder, cells.select(order_c)), parameters_cp[order_c])
    torch.testing.assert_close(encode(encoder, cells.slice(7, 8)), parameters_cp[7:8])


def test_encoder_applies_dropout_in_training_only() -> None:
    cells = simulate_cells()
    encoder = make_encoder(cells).eval()
    assert torch.equal(encode(encoder, cells), encode(encoder, cells))
    encoder.train()
    assert not torch.equal(encode(encoder, cells), encode(encoder, cells))
    without_dropout = make_encoder(cells, dropout_rate=0.0).train()
    assert torch.equal(encode(without_dropout, cells), encode(without_dropout, cells))


def test_encoder_normalizes_by_library_size() -> None:
    """Twice the counts and twice the library size give the same output."""
    cells = simulate_cells()
    encoder = make_encoder(cells).eval()
    rows = cells.counts["rna"]
    with torch.no_grad():
        doubled_cp = encoder(
            rows.with_values(2 * rows.value_n), 2 * cells.library_size["rna"], cells.category_ck, cells.continuous_ck
        )
    torch.testing.assert_close(doubled_cp, encode(encoder, cells))


def test_encoder_of_a_cell_without_counts_is_finite() -> None:
    cells = simulate_cells()
    rows, library_c = cells.counts["rna"], cells.library_size["rna"]
    emptied = rows.with_values(torch.zeros_like(rows.value_n)).select(torch.arange(60))
    no_counts = type(rows)(torch.zeros(3, dtype=torch.int64), rows.column_n[:0], rows.value_n[:0], N_FEATURES)
    encoder = make_encoder(cells).eval()
    with torch.no_grad():
        without_c = encoder(no_counts, torch.zeros(2), cells.category_ck[:2], cells.continuous_ck[:2])
        zeros_c = encoder(emptied, library_c, cells.category_ck, cells.continuous_ck)
    torch.testing.assert_close(without_c, zeros_c[:2])


def test_encoder_is_initialized_with_equal_weight_of_all_features() -> None:
    """The contribution of a feature to a hidden unit does not vary more if its counts vary more."""
    cells = simulate_cells(n_cells=400)
    rows = cells.counts["rna"]
    hundredfold = rows.value_n * torch.where(rows.column_n == 0, 100, 1)
    scaled = Cells({"rna": rows.with_values(hundredfold)}, cells.library_size, cells.category_ck, cells.continuous_ck)
    encoder = make_encoder(scaled)
    log_n = encoder.normalize(scaled.counts["rna"], scaled.library_size["rna"])
    deviation_f = scaled.counts["rna"].with_values(log_n).to_dense().std(0, correction=0)
    torch.manual_seed(0)
    raw_fh = Encoder(N_FEATURES, 6, LayerSizes((), 0, 8, 1), 0.5).weight_fh
    torch.testing.assert_close(deviation_f[:, None] * encoder.weight_fh, raw_fh, rtol=1e-3, atol=1e-4)


@KINDS
@SIZES
def test_decoder_is_initialized_to_the_mean_expression(n_layers: int, kind: DecoderName) -> None:
    """Without an influence of the latent state, the outputs are each feature's share of all counts."""
    rows = simulate_cells().counts["rna"]
    decoder = make_decoder(n_layers, kind=kind)
    decoder.initialize(rows)
    with torch.no_grad():
        decoder.heads[0].weight.zero_()
        (logits_cf,) = decoder(torch.randn(4, 3), torch.empty(4, 0, dtype=torch.int64), torch.empty(4, 0))
    total_f = rows.to_dense().sum(0) + 1
    torch.testing.assert_close(torch.softmax(logits_cf, -1), (total_f / total_f.sum()).expand(4, -1))


@pytest.mark.parametrize("n_heads", [1, 2])
def test_initial_decoder_weights_are_scaled_down(n_heads: int) -> None:
    started, raw = make_decoder(n_heads=n_heads), make_decoder(n_heads=n_heads)
    started.initialize(simulate_cells().counts["rna"])
    assert HEAD_SCALE == 0.1
    for head, raw_head in zip(started.heads, raw.heads, strict=True):
        torch.testing.assert_close(head.weight, raw_head.weight / 10)


def test_encoder_is_initialized_from_given_cells() -> None:
    """Cells without counts are excluded before; see `Module.initialize`."""
    cells = simulate_cells()
    encoder = make_encoder(cells)
    assert encoder.median_library_size == cells.library_size["rna"].median()
    log_n = encoder.normalize(cells.counts["rna"], cells.library_size["rna"])
    hidden_ch = cells.counts["rna"].with_values(log_n).to_dense() @ encoder.weight_fh + encoder.bias_h
    torch.testing.assert_close(hidden_ch.mean(0), torch.zeros(8), atol=1e-5, rtol=0)


@KINDS
@SIZES
@pytest.mark.parametrize("n_heads", [1, 2])
def test_decoder_returns_one_output_per_head(n_layers: int, n_heads: int, kind: DecoderName) -> None:
    decoder = make_decoder(n_layers, n_heads, kind=kind)
    heads = decoder(torch.randn(4, 3), torch.empty(4, 0, dtype=torch.int64), torch.empty(4, 0))
    assert [head.shape for head in heads] == [(4, N_FEATURES)] * n_heads


@KINDS
@SIZES
def test_decoder_depends_on_state_and_every_covariate(n_layers: int, kind: DecoderName) -> None:
    decoder = make_decoder(n_layers, 1, [2, 3], 1, kind)

    def decode(z: float, batch: int, donor: int, age: float) -> Tensor:
        with torch.no_grad():
            return decoder(torch.full((1, 3), z), torch.tensor([[batch, donor]]), torch.tensor([[age]]))[0]

    start = decode(0.5, 0, 0, 0.0)
    # Before training, all categories have the same effect.
    assert torch.equal(decode(0.5, 1, 2, 0.0), start)
    for embedding in (module for module in decoder.modules() if isinstance(module, torch.nn.Embedding)):
        torch.nn.init.normal_(embedding.weight)
    start = decode(0.5, 0, 0, 0.0)
    torch.testing.assert_close(decode(0.5, 0, 0, 0.0), start)
    for other in (decode(1.5, 0, 0, 0.0), decode(0.5, 1, 0, 0.0), decode(0.5, 0, 2, 0.0), decode(0.5, 0, 0, 1.0)):
        assert (other - start).abs().max() > 1e-3


def mixed_differences(decoder: Decoder, outputs: int) -> Tensor:
    """Return the effects of moving two coordinates together, minus those of moving each alone, ``(c, f)``."""
    random = torch.Generator().manual_seed(1)
    z_cz, step_cz = (torch.randn(40, 4, generator=random, dtype=torch.float64) for _ in range(2))
    code_ck = torch.stack([torch.arange(40) % 2, torch.arange(40) % 3], 1)
    age_ck = torch.randn(40, 1, generator=random, dtype=torch.float64)

    def decode(*moved: int) -> Tensor:
        moved_cz = z_cz.clone()
        moved_cz[:, moved] += step_cz[:, moved]
        with torch.no_grad():
            return decoder.double()(moved_cz, code_ck, age_ck)[outputs]

    return torch.stack([decode(a, b) - decode(a) - decode(b) + decode() for a, b in ((0, 1), (1, 3), (2, 0))])


@pytest.mark.parametrize("head", [0, 1])
def test_axes_of_an_additive_decoder_separate(head: int) -> None:
    """For any covariates, an output of an additive decoder is a sum of functions of one coordinate each."""
    decoders = {kind: make_decoder(1, 2, [2, 3], 1, kind, n_latent=4) for kind in DECODERS}
    for decoder in decoders.values():
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter)
    assert mixed_differences(decoders["additive"], head).abs().max() < 1e-12
    assert mixed_differences(decoders["network"], head).abs().max() > 0.1


def test_a_coordinate_of_an_additive_decoder_is_one_program() -> None:
    """Along a coordinate, all outputs change in proportion to its loadings."""
    decoder = make_decoder(kind="additive", n_latent=4)
    z_cz = torch.zeros(9, 4)
    z_cz[:, 2] = torch.linspace(-2, 2, 9)
    with torch.no_grad():
        (output_cf,) = decoder(z_cz, torch.empty(9, 0, dtype=torch.int64), torch.empty(9, 0))
    change_cf = output_cf - output_cf[4]
    loading_f = decoder.heads[0].weight.detach()[:, 2]
    along_c = change_cf @ loading_f / loading_f.square().sum()
    torch.testing.assert_close(change_cf, along_c[:, None] * loading_f, rtol=1e-4, atol=1e-5)
    # The program is active in one direction. The change in the other direction is small.
    assert along_c[-1] > 4 * along_c[0].abs()


def test_additive_decoder_without_covariates_has_no_units_for_them() -> None:
    assert make_decoder(kind="additive").heads[0].in_features == 3
    assert make_decoder(kind="additive", n_continuous=1).heads[0].in_features > 3
