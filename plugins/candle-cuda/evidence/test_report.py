"""python3 -m unittest -q test_report, in this folder: a report of what was found, of nothing, and of a part."""
import unittest

import report
import texts

GPU = {"busy": 0.5, "memory_mib": 3_000.0, "power_w": 300.0, "clock_mhz": 1_900.0, "samples": 9}
NOTHING = {"asked": {"plugin": "candle-cuda", "dtype": "f16", "quick": False}, "parity": [], "models": {}, "speed": [],
           "small": [], "server": [], "tokenizers": [], "problems": ["machine: it burns"]}
SERVER = {"model": "m", "row_tokens": 128, "before_mib": 1_000.0, "inference": 1_000.0, "pipeline": 900.0, "http": 800.0,
          "grpc": 950.0, "http_gpu": GPU, "grpc_gpu": None}


class Report(unittest.TestCase):
    def test_nothing_is_said_of_what_was_not_found(self):
        text = report.markdown(NOTHING)
        self.assertIn("no GPU", text)
        self.assertIn("* machine: it burns", text)
        self.assertNotIn("## Inference", text)

    def test_the_servers_shares_and_memory(self):
        text = report.markdown(NOTHING | {"server": [SERVER]})
        self.assertIn("| 20.0% | 5.0% | 50% | – |", text)
        self.assertIn("| m, http | 2,000 | 300 | 1900 |", text)

    def test_small_requests_in_milliseconds(self):
        line = {"model": "m", "documents": 8, "ours": {"as measured": [0.001, 0.002, 0.004], "never": [0.003]},
                "theirs": [0.008]}
        text = report.markdown(NOTHING | {"small": [line]})
        self.assertIn("| model | documents | graphs as measured | graphs never | PyTorch | ratio |", text)
        self.assertIn("| m | 8 | 2.00 (1.00–4.00) | 3.00 (3.00–3.00) | 8.00 (8.00–8.00) | 4.00 |", text)

    def test_each_dtype_has_a_column(self):
        text = report.markdown(NOTHING | {"parity": [("bert", "bf16", 0.02), ("bert", "f32", 1e-6), ("t5", "f32", 2e-6)]})
        self.assertIn("| model | f32 | bf16 |", text)
        self.assertIn("| t5 | 2.0e-06 | – |", text)


class Texts(unittest.TestCase):
    def test_tokenizers_have_as_many_pieces_as_the_model_has_words(self):
        pieces, words = texts.word_piece(4_000)
        self.assertEqual(sorted(pieces["model"]["vocab"].values()), list(range(4_000)))
        self.assertTrue(all(word in pieces["model"]["vocab"] for word in words))
        pieces, _ = texts.unigram(70_000)
        names = [name for name, _ in pieces["model"]["vocab"]]
        self.assertEqual((len(names), len(set(names))), (70_000, 70_000))

    def test_the_same_seed_makes_the_same_requests(self):
        words = texts.made_words(500)
        self.assertEqual(texts.requests(words, 74, 2, 3), texts.requests(words, 74, 2, 3))


if __name__ == "__main__":
    unittest.main()
