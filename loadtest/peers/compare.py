#!/usr/bin/env python3
"""How far two files of scores are apart.

    python compare.py expected.jsonl found.jsonl [--rho-min R] [--error-max E]

Prints Spearman's rho over all pairs and the mean and largest difference; exits 1 when a bound is missed.
"""
import argparse
import json
import sys

import numpy as np


def read(path):
    return [json.loads(line) for line in open(path)]


def ranks(values):
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expected")
    parser.add_argument("found")
    parser.add_argument("--rho-min", type=float)
    parser.add_argument("--error-max", type=float)
    arguments = parser.parse_args()
    expected, found = read(arguments.expected), read(arguments.found)
    if [line["query"] for line in expected] != [line["query"] for line in found]:
        sys.exit("the two files are not of the same requests")
    a = np.array([score for line in expected for score in line["scores"]])
    b = np.array([score for line in found for score in line["scores"]])
    rho = np.corrcoef(ranks(a), ranks(b))[0, 1]
    error = np.abs(a - b)
    print(f"{len(a)} pairs: rho {rho:.4f}, mean difference {error.mean():.2e}, largest {error.max():.2e}")
    if arguments.rho_min is not None and rho < arguments.rho_min:
        sys.exit(f"rho is below {arguments.rho_min}")
    if arguments.error_max is not None and error.max() > arguments.error_max:
        sys.exit(f"the largest difference is above {arguments.error_max}")


if __name__ == "__main__":
    main()
