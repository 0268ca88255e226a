from hmoe.train.expert_alarm import Watch

WIDTHS = (8, 16, 24, 32)


def test_a_dead_expert_is_announced_once_with_its_width() -> None:
    watch = Watch((2, 4), patience=3)
    said = [watch.update([[5, 0, 5, 5], [3, 3, 3, 3]], 8, WIDTHS) for _ in range(6)]
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0]
    assert "MoE layer 0: expert 1 (width 16) got no token for 3 steps" in said[2][0]
    watch.update([[5, 1, 5, 5], [3, 3, 3, 3]], 8, WIDTHS)
    again = [watch.update([[5, 0, 5, 5], [3, 3, 3, 3]], 8, WIDTHS) for _ in range(3)]
    assert [len(lines) for lines in again] == [0, 0, 1]


def test_a_collapsed_router_is_announced() -> None:
    watch = Watch((1, 4), patience=2)
    said = [watch.update([[1000, 999, 1, 0]], 1000, WIDTHS) for _ in range(2)]
    assert any("the router collapsed, 2 of 4 experts took 100%" in line for line in said[1])
    watch = Watch((1, 4), patience=2)
    assert not any("collapsed" in line for _ in range(9) for line in watch.update([[900, 900, 100, 100]], 1000, WIDTHS))


def test_using_all_experts_is_no_collapse() -> None:
    watch = Watch((1, 2), patience=1)
    assert watch.update([[10, 10]], 10, (4, 4)) == []


def test_state_continues_a_count() -> None:
    watch = Watch((1, 2), patience=3)
    for _ in range(2):
        watch.update([[9, 0]], 5, (4, 4))
    restored = Watch((1, 2), 3, watch.state())
    assert restored.update([[9, 0]], 5, (4, 4)) == ["MoE layer 0: expert 1 (width 4) got no token for 3 steps"]
