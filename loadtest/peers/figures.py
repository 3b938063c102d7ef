"""What is made of measurements: ranks, medians, intervals. Plain Python, tested by test_figures.py."""
import math

CONFIDENCE = 0.95


def ranks(values):
    """Ranks from 0; equal values share their mean rank."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    found, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start:end + 1]:
            found[place] = (start + end) / 2
        start = end + 1
    return found


def spearman(a, b):
    """The correlation of the ranks; 1 for the same order."""
    a, b = ranks(a), ranks(b)
    mean = (len(a) - 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(a, b))
    squares = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return products / squares if squares else math.nan


def median(values):
    """The middle one, or the mean of the two in the middle."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def interval(values, confidence=CONFIDENCE):
    """Bounds of the median, without any assumption about the distribution.

    The number of n values below the true median is binomial with p = 1/2, so the k-th smallest and the k-th
    largest enclose it with probability 1 - 2·P(B(n, 1/2) < k). The largest such k is taken (David & Nagaraja,
    Order Statistics, §7.1). Fewer than 6 values enclose nothing with 95 %: None.
    """
    ordered, n = sorted(values), len(values)
    k, tail = 0, 0.0
    while k < n // 2:
        tail += math.comb(n, k) / 2 ** n
        if 2 * tail > 1 - confidence:
            break
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else None
