# SPDX-License-Identifier: Apache-2.0
"""tools/benchmarks: each runs, checks before it times, and writes what it promises.

No test looks at how long anything took.
"""

import argparse
import importlib
import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

import ops_dcnv3
from ops_dcnv3 import DCNv3
from tests.paths import TOOLS

FOLDER = TOOLS / 'benchmarks'
NAMES = [path.stem for path in FOLDER.glob('*.py')]
TIMED = {'median_s', 'q1_s', 'q3_s', 'runs', 'ratio', 'peak_bytes'}

# With the signature of the published function, to be found in a folder like theirs.
PUBLISHED = """
import DCNv3
import pkg_resources
from ops_dcnv3 import dcnv3_reference

VERSION = float(pkg_resources.get_distribution('DCNv3').version)


def dcnv3_core_pytorch(
    input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    dilation_h, dilation_w, group, group_channels, offset_scale
):
    assert input.shape[-1] == group * group_channels
    return dcnv3_reference(
        input, offset, mask, kernel_size=(kernel_h, kernel_w),
        stride=(stride_h, stride_w), padding=(pad_h, pad_w),
        dilation=(dilation_h, dilation_w), groups=group, offset_scale=offset_scale,
    )
"""


@pytest.fixture
def load(monkeypatch):
    """Import a script by name, as Python does for the scripts beside it."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    # Shapes are tiny: threads would wait for each other most of the time.
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def run(load, tmp_path):
    """Run a benchmark on the CPU in two runs each; return its result."""

    def run_benchmark(name, *arguments):
        common = ['--device', 'cpu', '--threads', '1', '--quick']
        path = load(name).main([*common, '--out', str(tmp_path), *arguments])
        assert path.parent == tmp_path
        result = json.loads(path.read_text())
        assert result['benchmark'].startswith(name.removeprefix('bench_'))
        dtype = result['settings']['dtype']
        image = result['settings'].get('image') if name == 'bench_backbone' else None
        end = f'{result["machine"]["date"][:10]}_{result["benchmark"]}'
        end += f'_{image[0]}x{image[1]}' if image else ''
        end += '.json' if dtype == 'float32' else f'_{dtype}.json'
        assert path.name.endswith(f'_{end}')
        assert {'device', 'threads', 'torch', 'commit'} <= result['machine'].keys()
        for row in result['rows']:
            assert row.keys() >= {'case', 'batch', 'pass', 'participant'}
            assert 'missing' in row or row.keys() >= TIMED | {'error'}
        return result

    return run_benchmark


def errors_of(result):
    """Return the errors by participant, of those that were timed."""
    errors = {}
    for row in result['rows']:
        if 'missing' not in row:
            errors.setdefault(row['participant'], []).append(row['error'])
    return errors


TINY = ['--image', '32', '40', '--batch', '2', '--copy-mib', '1']


def test_two_runs_make_a_quick_figure(load):
    calls = []
    timing = load('timing')
    (found,) = timing.time_together(
        {'a call': lambda: calls.append(1)}, torch.device('cpu'), timing.QUICK
    ).values()
    assert found.runs == 2
    assert len(calls) < 10  # with those that warm up


@pytest.mark.parametrize(
    ('seconds', 'most', 'runs'), [(0.5, 1000, 20), (0.01, 1000, 6), (0.5, 12, 12)]
)
def test_a_figure_takes_the_time_it_is_given(load, monkeypatch, seconds, most, runs):
    """By a clock on which each call takes 25 ms."""
    timing = load('timing')
    ticks = itertools.count()
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(ticks) * 0.025)
    effort = timing.Effort(seconds=seconds, runs=6, rounds=4, most=most)
    (found,) = timing.time_together(
        {'a call': lambda: None}, torch.device('cpu'), effort
    ).values()
    assert found.runs == runs
    assert found.median_s == pytest.approx(0.025)


def test_name_of_the_cpu(load, monkeypatch):
    record = load('record')
    texts = {'model name\t: A CPU  \nmodel name\t: B\n': 'A CPU', 'flags: x\n': 'armv9'}
    monkeypatch.setattr(record.platform, 'machine', lambda: 'armv9')
    for text, name in texts.items():
        monkeypatch.setattr(Path, 'read_text', lambda _, text=text: text)
        assert record.cpu_name() == name


@pytest.mark.parametrize('has_cuda', [False, True])
def test_a_gpu_is_taken_where_there_is_one(load, monkeypatch, has_cuda):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_cuda)
    device = load('record').make_parser('').parse_args([]).device
    assert device == ('cuda' if has_cuda else 'cpu')


def test_operator(run):
    growth = ['--growth', '--growth-sizes', '48', '--growth-batches']
    result = run('bench_operator', '--shapes', 't2', 'l1', *TINY, *growth)
    rows = [row for row in result['rows'] if 'floor_s' in row]
    assert all(row['gb_per_s'] > 0 and row['floor_bytes'] > 0 for row in rows)
    errors = errors_of(result)
    assert {'internimage', 'PyTorch reference'} <= errors.keys()
    assert max(map(max, errors.values())) < 1e-5
    grown = [row for row in result['rows'] if 'growth' in row['case']]
    assert len(grown) == 2
    assert all(row['ns_per_pixel'] > 0 for row in grown)


@pytest.mark.parametrize('softmax', [False, True])
def test_operator_in_half_precision(run, softmax):
    arguments = ['--shapes', 't1', *TINY, '--dtype', 'bfloat16', '--peers']
    result = run('bench_operator', *arguments, *(['--softmax'] * softmax))
    assert result['benchmark'] == ('operator-softmax' if softmax else 'operator')
    errors = errors_of(result)
    assert list(errors) == ['internimage']
    assert 1e-4 < max(errors['internimage']) < 8e-3


@pytest.mark.parametrize('softmax', [False, True])
def test_mmcv_computes_the_same(load, softmax):
    pytest.importorskip('mmcv.ops')
    shape = load('shapes').Shape('x', 2, 5, 7, 12, 3, offset_scale=1.7)
    peers = load('peers')
    problem = peers.make_problem(shape, torch.device('cpu'), torch.float32, softmax)
    error = load('bench_operator').check(problem, peers.adapt_mmcv(problem), True)
    assert error < 1e-5


class V4:
    """A stand-in for ``DCNv4.functions.dcnv4_func``, which needs CUDA."""

    TABLE = {}
    # Six pixels of 12 channels: of 35 in an image, that block crosses images.
    BWDTABLE = {'2x5x7x3x4': [1, 72, 3]}

    @classmethod
    def findspec(cls, *size):
        cls.TABLE['x'.join(map(str, size))] = 8, 16 * size[-1] * size[-2]
        return 4, 30

    @classmethod
    def find_spec_bwd(cls, *size):
        return cls.BWDTABLE['x'.join(map(str, size))][:2]

    class DCNv4Function:
        @staticmethod
        def apply(x, packed, *settings):
            *layout, groups, _, scale, _, _ = settings
            assert layout == [3, 3, 1, 1, 1, 1, 1, 1]
            assert packed.shape[-1] % 8 == 0
            parts = packed[..., : groups * 27].unflatten(-1, (groups, 27))
            offset, mask = parts[..., :18].flatten(-2), parts[..., 18:].flatten(-2)
            return ops_dcnv3.dcnv3_reference(
                x, offset, mask, groups=groups, offset_scale=scale
            )


@pytest.mark.parametrize('softmax', [False, True])
def test_published_v4_gets_what_it_takes(load, softmax):
    shape = load('shapes').Shape('x', 2, 5, 7, 12, 3, offset_scale=1.7)
    peers = load('peers')
    problem = peers.make_problem(shape, torch.device('cpu'), torch.float32, softmax)
    adapted = peers.adapt_published_v4(V4)(problem)
    assert load('bench_operator').check(problem, adapted, True) < 1e-5
    # A thread has 4 channels, a pixel 3 threads; 35 pixels divide by 7, not by 10.
    assert V4.TABLE['2x5x7x3x4'] == (4, 21)
    assert V4.BWDTABLE['2x5x7x3x4'] == (1, 60)


@pytest.mark.parametrize('threads', [96, 512, 4096])
@pytest.mark.parametrize('stride', [1, 8])
def test_launch_of_v4(load, stride, threads):
    for shape in load('shapes').find_shapes(['t', 'h'], 64, (224, 224)):
        channels, block = load('peers').launch_of_v4(shape, stride, threads)
        pixels, rest = divmod(block * channels, shape.channels)
        assert rest == 0
        assert (shape.height * shape.width) % pixels == 0
        assert block <= 1024
        assert (shape.channels // shape.groups) % channels == 0


def test_launch_of_v4_that_works_stays(load):
    shape = load('shapes').Shape('x', 64, 4, 6, 32, 2)
    assert load('peers').launch_of_v4(shape, 1, 96) == (1, 96)


def test_published_path(run, tmp_path):
    folder = tmp_path / 'ops'
    (folder / 'functions').mkdir(parents=True)
    (folder / 'functions/dcnv3_func.py').write_text(PUBLISHED)
    name = 'published PyTorch path'
    arguments = ['--shapes', 'l3', *TINY, '--peers', name]
    try:
        result = run('bench_operator', *arguments, '--published', str(folder))
    finally:
        for module in [m for m in sys.modules if m.startswith('published_ops')]:
            del sys.modules[module]
    assert max(errors_of(result)[name]) < 1e-5
    assert 'DCNv3' not in sys.modules
    missing = run('bench_operator', *arguments, '--published', str(tmp_path))['rows'][1]
    assert 'no functions/dcnv3_func.py' in missing['missing']


@pytest.mark.parametrize('part', ['output', 'gradient', 'not a number'])
def test_wrong_operator_is_never_timed(run, load, monkeypatch, tmp_path, part):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x = x.clone()
            x[-1, 0, 0, 0] += {'output': 0.1, 'not a number': float('nan')}.get(part, 0)
            return x

        @staticmethod
        def backward(ctx, grad):
            return 1.01 * grad if part == 'gradient' else grad

    def wrong(input, *args, **kwargs):
        return Wrong.apply(ops_dcnv3.dcnv3(input, *args, **kwargs))

    def never(*args, **kwargs):
        pytest.fail('timed before it was checked')

    monkeypatch.setattr(load('peers'), 'dcnv3', wrong)
    monkeypatch.setattr(load('record'), 'time_together', never)
    with pytest.raises(load('record').WrongResultError, match='t1'):
        run('bench_operator', '--shapes', 't1', *TINY)
    (path,) = tmp_path.glob('*.json')
    assert not json.loads(path.read_text())['rows']


def test_a_wrong_case_does_not_stop_the_others(run, load, monkeypatch, tmp_path):
    def wrong_when_narrow(input, *args, **kwargs):
        output = ops_dcnv3.dcnv3(input, *args, **kwargs)
        return output * 1.01 if input.shape[-1] == 64 else output

    monkeypatch.setattr(load('peers'), 'dcnv3', wrong_when_narrow)
    with pytest.raises(load('record').WrongResultError, match='t1'):
        run('bench_operator', '--shapes', 't1', 't4', *TINY, '--peers')
    (path,) = tmp_path.glob('*.json')
    rows = json.loads(path.read_text())['rows']
    assert [(row['case'], 'floor_s' in row) for row in rows] == [('t4', True)] * 2


def test_what_was_timed_is_written_before_the_next_case(
    run, load, monkeypatch, tmp_path
):
    time_together = load('timing').time_together

    def stop(*args):
        if list(tmp_path.glob('*.json')):
            raise KeyboardInterrupt
        return time_together(*args)

    monkeypatch.setattr(load('record'), 'time_together', stop)
    with pytest.raises(KeyboardInterrupt):
        run(
            'bench_backbone',
            '--small',
            *['--image', '32', '40', '--batch', '1', '--peers'],
        )
    (path,) = tmp_path.glob('*.json')
    (row,) = json.loads(path.read_text())['rows']
    assert row['images_per_s'] > 0


def test_wrong_peer_is_left_out(run, load, monkeypatch):
    wrong = 'PyTorch reference'

    def wrong_reference(*args, **kwargs):
        return 1.01 * ops_dcnv3.dcnv3(*args, **kwargs)

    monkeypatch.setattr(load('peers'), 'dcnv3_reference', wrong_reference)
    rows = run('bench_operator', '--shapes', 't4', *TINY, '--peers', wrong)['rows']
    missing = [row['missing'] for row in rows if row['participant'] == wrong]
    assert len(missing) == 2
    assert all('wrong result' in text for text in missing)


def test_float32_is_not_tf32(run):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        backend.allow_tf32 = True  # until the benchmark starts
    run('bench_operator', '--shapes', 't4', *TINY, '--peers')
    assert not any(backend.allow_tf32 for backend in backends)


def test_module(run):
    arguments = ['--image', '32', '40', '--batch', '1']
    result = run('bench_module', '--shapes', 't4', 'h1', *arguments)
    errors = errors_of(result)
    assert errors.keys() == {'internimage', 'PyTorch reference'}
    assert max(map(max, errors.values())) < 1e-5


def test_module_in_half_precision(run):
    arguments = ['--image', '32', '40', '--batch', '1', '--dtype', 'bfloat16']
    result = run('bench_module', '--shapes', 't4', *arguments)
    errors = errors_of(result)
    assert min(map(min, errors.values())) > 1e-4
    assert max(map(max, errors.values())) < 3e-2


def test_published_layer_has_our_settings_and_weights(load, monkeypatch):
    bench = load('bench_module')
    asked = {}

    def published_layer(**settings):
        asked.update(settings)
        return DCNv3(32, groups=2, dw_kernel_size=5, center_feature_scale=True)

    monkeypatch.setattr(bench.published, 'load_layer', lambda *_: published_layer)
    args = argparse.Namespace(published=Path('there'))
    benchmark = argparse.Namespace(args=args, device='cpu', dtype=torch.float64)
    ours = DCNv3(
        32, groups=2, dw_kernel_size=5, offset_scale=2.0, center_feature_scale=True
    )
    layer = bench.make_published(benchmark, ours)
    assert asked == dict(
        channels=32,
        group=2,
        offset_scale=2.0,
        dw_kernel_size=5,
        center_feature_scale=True,
    )
    weight = layer.input_proj.weight
    assert torch.equal(weight, ours.input_proj.weight.double())


def test_backbone(run):
    size = ['--small', '--image', '64', '40', '--batch', '2']
    result = run('bench_backbone', *size, '--peers', 'PyTorch reference')
    rows = {(row['participant'], row['pass']): row for row in result['rows']}
    ours = rows['internimage', 'forward']
    assert ours['images_per_s'] > 0
    assert ours['copies']['aten::copy_'] >= 0
    assert len(rows) == 4
    assert max(row['error'] for row in rows.values()) < 1e-5


def test_backbone_of_timm(run):
    arguments = [
        '--small',
        '--image',
        '32',
        '40',
        '--batch',
        '1',
        '--passes',
        'forward',
    ]
    ours, peer = run('bench_backbone', *arguments, '--peers', 'ConvNeXt-T')['rows']
    assert ours['participant'] == 'internimage'
    assert 'timm' in peer['missing'] if 'missing' in peer else peer['error'] is None


def test_detector(run):
    pytest.importorskip('mmdet')
    result = run('bench_detector', '--small', '--size', '64', '96')
    ours, reference = result['rows']
    assert ours['participant'] == 'internimage'
    assert reference['participant'] == 'PyTorch reference'
    assert ours['error'] < 1e-5


def test_training_steps_see_the_same_losses(load):
    pytest.importorskip('mmdet')
    bench, models = load('bench_detector'), load('models')
    config = bench.Config.fromfile(bench.CONFIG)
    config.model.backbone.init_cfg = None
    config.merge_from_dict(bench.SMALL)
    torch.manual_seed(0)
    model = bench.make_model(config).train()
    step = bench.make_step(model, bench.make_batch(1, 64, 96), torch.float32)
    gradients = []
    for name in ('internimage', 'PyTorch reference'):
        models.with_operator(name, step)()
        gradients.append(model.backbone.patch_embed.conv1.weight.grad.clone())
    assert load('record').relative_error(*gradients) < 1e-3
    assert gradients[0].norm() > 0


def test_stages_of_tiny_are_those_of_the_issue(load):
    shapes = load('shapes').find_shapes(['t', '64x56x56x128'], 1, (224, 224))
    assert [tuple(shape[1:6]) for shape in shapes] == [
        (1, 56, 56, 64, 4),
        (1, 28, 28, 128, 8),
        (1, 14, 14, 256, 16),
        (1, 7, 7, 512, 32),
        (64, 56, 56, 128, 4),
    ]
    with pytest.raises(ValueError, match="got 'q1'"):
        load('shapes').find_shapes(['q1'], 1, (224, 224))


def test_report(run, load, tmp_path):
    run('bench_operator', '--shapes', 't4', *TINY)
    readme = tmp_path / 'README.md'
    text = 'before\n<!-- bench:{} -->\nold\n<!-- /bench -->\nafter\n'
    readme.write_text(text.format('operator') + text.format('module'))
    report = ['--write', '--readme', str(readme), str(tmp_path)]
    load('report').main(report)
    first = readme.read_text()
    assert '| t4: 1x2x512, G32 | 2 | forward | **internimage** |' in first
    assert 'Not measured yet.' in first
    assert 'old' not in first
    assert first.startswith('before\n')
    assert first.endswith('<!-- /bench -->\nafter\n')
    load('report').main(report)
    assert readme.read_text() == first


def made_up(targets, better, device='cpu'):
    """Return results in which each target is met, or just missed."""
    runs = {}
    for target in targets:
        # Ours takes a second.
        seconds = target.wanted * better if target.faster else better / target.wanted
        row = dict(case=target.case, batch=target.batch) | {'pass': target.which}
        ours = row | dict(participant='internimage', median_s=1.0)
        if target.peer == 'memory floor':
            rows = [ours | dict(floor_s=seconds)]
        else:
            rows = [ours, row | dict(participant=target.peer, median_s=seconds)]
        runs.setdefault((target.benchmark, target.dtype), []).extend(rows)
    return [
        dict(benchmark=name, settings=dict(device=device, dtype=dtype), rows=rows)
        for (name, dtype), rows in runs.items()
    ]


@pytest.fixture
def dry(load, monkeypatch, tmp_path):
    """Run a benchmark that computes nothing and in which every call takes a second."""
    pytest.importorskip('mmdet')
    record, timing = load('record'), load('timing')
    operator, backbone, detector = map(
        load, ('bench_operator', 'bench_backbone', 'bench_detector')
    )

    def replace(module, name, answer):
        monkeypatch.setattr(module, name, answer)

    second = timing.Timing(1.0, 1.0, 1.0, 1)
    replace(record, 'time_together', lambda calls, *_: dict.fromkeys(calls, second))
    replace(record, 'peak_memory', lambda *_: None)
    replace(operator, 'copy_bandwidth', lambda *_: 1e9)
    replace(operator, 'check', lambda *_, **__: 0.0)
    replace(backbone, 'draw_weights', lambda model: None)
    replace(detector, 'draw_weights', lambda model: None)
    replace(backbone, 'check_all', lambda functions, *_: (dict.fromkeys(functions), {}))
    replace(detector, 'check', lambda *_: 0.0)
    replace(detector, 'make_batch', lambda *_: {})

    def run_benchmark(name, arguments):
        on_meta = ['--device', 'meta', '--out', str(tmp_path)]
        with torch.device('meta'):
            path = load(f'bench_{name}').main([*on_meta, *shlex.split(arguments)])
        return json.loads(path.read_text())

    return run_benchmark


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_a_run_has_the_row_of_every_target(load, dry, capsys, device):
    targets = load('targets')
    results = []
    for name, arguments in targets.RUNS[device]:
        result = dry(name, arguments.format(peer=targets.PUBLISHED_PATH))
        result['settings']['device'] = device
        for row in result['rows']:
            row.setdefault('median_s', 1.0)  # of a peer that is not installed here
        results.append(result)
    capsys.readouterr()
    targets.judge(results, device)
    out = capsys.readouterr().out
    assert 'MISSING' not in out
    assert all(target.name in out for target in targets.TARGETS[device])


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_targets(load, capsys, device):
    targets = load('targets')
    wanted = targets.TARGETS[device]
    assert min(target.wanted for target in wanted) > 0
    assert targets.judge(made_up(wanted, 1.01, device), device)
    assert 'PUBLISHED' not in capsys.readouterr().out
    assert not targets.judge(made_up(wanted, 0.99, device), device)
    out = capsys.readouterr().out
    assert out.count('FAIL') == len(wanted)
    # All but one: it is missing, and that is no pass.
    assert not targets.judge(made_up(wanted[1:], 1.01, device), device)
    assert capsys.readouterr().out.count('MISSING') == 1
    other = {'cpu': 'cuda', 'cuda': 'cpu'}[device]
    assert not targets.judge(made_up(wanted, 1.01, other), device)


def test_targets_after_a_benchmark_that_fails(load, capsys, monkeypatch, tmp_path):
    targets = load('targets')
    arguments = '--shapes t4 --image 32 40 --batch 1 --copy-mib 1 --quick --peers'
    runs = [('operator', '--dtype float8'), ('operator', arguments)]
    monkeypatch.setattr(targets, 'RUNS', {'cpu': runs})
    target = targets.Target(
        't', 'operator', 't4', 1, 'forward', 'memory floor', 0, True
    )
    monkeypatch.setattr(targets, 'TARGETS', {'cpu': [target]})
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'out'
    assert not targets.main(['--run', '--out', 'out', '--commit', 'c0ffee'])
    said = capsys.readouterr().out
    assert 'pass' in said
    assert 'ended with an error: 1' in said
    (path,) = out.glob('*.json')
    assert json.loads(path.read_text())['machine']['commit'] == 'c0ffee'


def test_targets_without_the_published_path(load, capsys):
    targets = load('targets')
    results = made_up(targets.TARGETS['cpu'], 1.01)
    for result in results:
        for row in result['rows']:
            row['participant'] = row['participant'].replace(
                targets.PUBLISHED_PATH, targets.REFERENCE
            )
    assert targets.judge(results, 'cpu')
    assert 'make bench PUBLISHED=' in ' '.join(capsys.readouterr().out.split())
