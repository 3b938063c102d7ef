"""python -m unittest test_figures"""
import unittest

from figures import interval, median, ranks, spearman


class Figures(unittest.TestCase):
    def test_ranks_of_equal_values_are_shared(self):
        self.assertEqual(ranks([30, 10, 20, 10]), [3, 0.5, 2, 0.5])

    def test_spearman(self):
        self.assertAlmostEqual(spearman([1, 2, 3], [10, 20, 40]), 1)
        self.assertAlmostEqual(spearman([1, 2, 3], [3, 2, 1]), -1)
        # By hand: ranks 0 1 2 3 against 1 0 2 3; 1 - 6·2 / (4·15).
        self.assertAlmostEqual(spearman([1, 2, 3, 4], [2, 1, 3, 4]), 0.8)

    def test_median(self):
        self.assertEqual((median([3, 1, 2]), median([4, 1, 3, 2])), (2, 2.5))

    def test_intervals_by_the_table(self):
        # Places of the 95 % interval, from the smallest and the largest, for n values.
        for n, place in [(6, 1), (7, 1), (8, 1), (9, 2), (11, 2), (12, 3), (20, 6), (25, 8)]:
            self.assertEqual(interval(range(1, n + 1)), (place, n + 1 - place), n)
        self.assertIsNone(interval([1, 2, 3, 4, 5]))


if __name__ == "__main__":
    unittest.main()
