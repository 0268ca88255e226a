from hmoe.train.expert_alarm import ExpertAlarm

WIDTHS = (8, 16, 24, 32)


def test_a_dead_expert_is_announced_once_with_its_width() -> None:
    alarm = ExpertAlarm((2, 4), patience=3)
    lines_of_steps = [alarm.update([[5, 0, 5, 5], [3, 3, 3, 3]], 8, WIDTHS) for _ in range(6)]
    assert [len(lines) for lines in lines_of_steps] == [0, 0, 1, 0, 0, 0]
    assert "MoE layer 0: expert 1 (width 16) got no token for 3 steps" in lines_of_steps[2][0]
    alarm.update([[5, 1, 5, 5], [3, 3, 3, 3]], 8, WIDTHS)
    again = [alarm.update([[5, 0, 5, 5], [3, 3, 3, 3]], 8, WIDTHS) for _ in range(3)]
    assert [len(lines) for lines in again] == [0, 0, 1]


def test_a_collapsed_router_is_announced() -> None:
    alarm = ExpertAlarm((1, 4), patience=2)
    lines_of_steps = [alarm.update([[1000, 999, 1, 0]], 1000, WIDTHS) for _ in range(2)]
    assert any("the router collapsed, 2 of 4 experts took 100%" in line for line in lines_of_steps[1])
    alarm = ExpertAlarm((1, 4), patience=2)
    assert not any(
        "collapsed" in line for _ in range(9) for line in alarm.update([[900, 900, 100, 100]], 1000, WIDTHS)
    )


def test_using_all_experts_is_no_collapse() -> None:
    alarm = ExpertAlarm((1, 2), patience=1)
    assert alarm.update([[10, 10]], 10, (4, 4)) == []


def test_state_continues_a_count() -> None:
    alarm = ExpertAlarm((1, 2), patience=3)
    for _ in range(2):
        alarm.update([[9, 0]], 5, (4, 4))
    restored = ExpertAlarm((1, 2), 3, alarm.state())
    assert restored.update([[9, 0]], 5, (4, 4)) == [
        "MoE layer 0: expert 1 (width 4) got no token for 3 steps"
    ]
