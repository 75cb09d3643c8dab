"""The average of weights, and its place in the model while it is looked at."""

import torch

from mini_chat_gpt.training.weight_average import WeightAverage


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.averages["weight"], expected)


def test_the_model_gets_its_own_weights_back_to_the_bit():
    model = torch.nn.Linear(8, 8)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.add_(torch.randn(8, 8))
    average.update()
    before, averaged = model.weight.detach().clone(), average.averages["weight"].clone()
    with average.in_place():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, before)
    assert torch.equal(average.averages["weight"], averaged)
