"""Published positions in the human cell cycle at which the expression of genes peaks.

Positions are percent of the cycle, 0 at division. Two kinds of sources are used, and each gene has one of them.

``CYCLEBASE``: peak times of Cyclebase 3 [1]_, which combines several synchronized time courses, most of them of HeLa
cells by Whitfield et al. [2]_. Genes of the same percent are on one line.

``STAGES``: genes that are not among the 396 most periodic ones of Cyclebase. Whitfield et al. assigned them to a stage
[2]_, and Macosko et al. found that they vary with the other genes of that stage in single cells [3]_. Their position is
the median one of the genes of the stage that Cyclebase has.

Symbols are as published. `RENAMED_GENES` in `celldial.periodic.markers` has the current ones.

.. [1] Santos, Wernersson and Jensen (2015), Cyclebase 3.0: a multi-organism database on cell-cycle regulation and
   phenotypes, Nucleic Acids Research 43, D1140-D1144, doi:10.1093/nar/gku1092
.. [2] Whitfield et al. (2002), Identification of genes periodically expressed in the human cell cycle and their
   expression in tumors, Molecular Biology of the Cell 13, 1977-2000, doi:10.1091/mbc.02-02-0030
.. [3] Macosko et al. (2015), Highly parallel genome-wide expression profiling of individual cells using nanoliter
   droplets, Cell 161, 1202-1214, doi:10.1016/j.cell.2015.05.002
"""

from __future__ import annotations

__all__ = ["CYCLEBASE", "REFERENCE_PERCENT", "STAGES", "STAGE_PERCENT"]

_GENES_AT_PERCENT = {
    0: "CDKN3",
    1: "PTTG1",
    34: "SLBP",
    35: "CCNE1",
    36: "CDCA7",
    38: "CDC25A",
    39: "UNG SKP2 ZNF367",
    41: "CCNE2 NASP",
    42: "DTL",
    44: "MCM6",
    45: "MCM2",
    46: "CDC6 E2F1 E2F2 MCM5",
    47: "GMNN MSH2 WDR76",
    48: "ORC1",
    49: "FAM111B",
    50: "PCNA GINS2 CDCA7L",
    51: "CHAF1B POLD3",
    52: "CLSPN DONSON FEN1 PAQR4 PKMYT1 RFC4 UBR7",
    53: "DSCC1 RBBP8",
    54: "DDX11",
    55: "ATAD2 HELLS TOPBP1",
    56: "ABCC5 CENPQ MLF1IP RFC2 USP1",
    57: "RAD54L",
    58: "E2F8",
    59: "ASF1B MASTL",
    60: "EXO1 EZH2",
    61: "BRCA1",
    64: "RRM2",
    66: "UBE2T",
    67: "CDCA5 FANCI RAD51AP1 ZWINT",
    69: "ESCO2",
    72: "H2AFX POLQ",
    73: "DCTPP1",
    74: "MND1 STIL",
    75: "CDK1 CDKN2C FANCD2 NEIL3 SKA3 TUBB",
    76: "CENPL HJURP NDC80",
    78: "ARHGAP11A CDCA2 KIFC1",
    79: "CKAP2L TUBB4B",
    80: "AURKB HMGB2 MELK",
    81: "ESPL1 HP1BP3 IQGAP3 KIAA1524 KIF11 PSRC1 TOP2A UBE2C",
    82: "CCNF CDCA8 FAM83D KIF23 MAD2L1 MIS18BP1 NCAPH",
    83: "BRD8 CDC25C TTK",
    84: "ARHGEF39 CCNA2 NUSAP1 PIF1 SAP30 TRIP13",
    85: "BUB3 CDCA3 CKAP2 CKS1B KPNA2 MKI67 SGOL2 SHCBP1 SMC4",
    86: "BORA CENPA FOXM1",
    87: "BUB1B GAS2L3 HN1 KIF14 RANGAP1 SPDL1 TACC3",
    88: "CIT KIF20B PBK",
    89: "ANLN GTSE1 KIF2C",
    90: "AURKA CDC25B CENPF CEP55 DEPDC1 DEPDC1B G2E3 HMMR NUF2 SPAG5",
    91: "ARL6IP1 CENPE CKAP5 HMGB3 MCM4 TPX2",
    92: "BUB1 CKS2 FAM64A",
    93: "CCNB1 CDC27 ECT2 GPSM2 NEK2 PLK1",
    94: "BIRC5 CCNB2 CDC20 DLGAP5 LBR",
    95: "PRC1",
    96: "ANP32E KNSTRN RAD21 SAPCD2 UBE2S",
    98: "PRR11 TROAP",
}
CYCLEBASE: dict[str, int] = {gene: percent for percent, genes in _GENES_AT_PERCENT.items() for gene in genes.split()}
"""Gene to the percent of the cycle at which it peaks in Cyclebase 3."""

_GENES_OF_STAGE = {
    "G1/S": "CASP8AP2 CHAF1A NPAT RMI2 TIPIN UHRF1",
    "S": "BLM BRIP1 CDC45 CDC7 CENPM DHFR DNA2 FANCA HIST1H4C MCM8 POLA1 PRIM1 RAD18 RAD51 RPA2 RRM1 TYMS",
    "G2": "CBX5 CHEK2 HAUS8 KIF22 LMNB1 NUMA1 TMPO TRAIP TUBA1A",
    "G2/M": "CTCF DIAPH3 NCAPD2",
}
STAGES: dict[str, tuple[str, ...]] = {stage: tuple(genes.split()) for stage, genes in _GENES_OF_STAGE.items()}
"""Stage to the genes that have no peak time in Cyclebase."""

STAGE_PERCENT = {"G1/S": 47, "S": 58, "G2": 81, "G2/M": 90}
"""Median percent of the genes of each stage of Macosko et al. that Cyclebase has."""

REFERENCE_PERCENT: dict[str, int] = {
    **{gene: STAGE_PERCENT[stage] for stage, genes in STAGES.items() for gene in genes},
    **CYCLEBASE,
}
"""Gene to the percent of the cycle at which its expression peaks."""
