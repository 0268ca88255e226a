from hmoe.train.sparkline import draw_shares


def test_bars_are_mean_shares_over_layers_with_the_narrowest_expert_first() -> None:
    shares_ZE = [[0.1, 0.5, 0.2, 0.2], [0.3, 0.3, 0.4, 0.0]]  # means 0.2, 0.4, 0.3, 0.1
    assert draw_shares(shares_ZE, (30, 10, 20, 0)) == "▃█▇▅"
    assert draw_shares(shares_ZE, (30, 10, 20, 0), "ascii") == ":#*="
    assert draw_shares(shares_ZE, (30, 10, 20, 0), "no such encoding") == ":#*="


def test_experts_without_tokens_have_the_lowest_bar() -> None:
    assert draw_shares([[0.0, 0.0]], (1, 2)) == "▁▁"
    assert draw_shares([[1.0, 0.0]], (2, 1)) == "▁█"
