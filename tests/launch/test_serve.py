"""The policy server in an image and in a cluster, as far as it can be tried without either.

hadolint and the schemas of Kubernetes read the files; the image's steps run in a directory that
holds what it copies, in an environment of their own; and the program starts as the cluster would
start it.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import dockerfile_parse
import kubernetes_validate
import pytest
import yaml

from tests import programs

ROOT = pathlib.Path(__file__).parents[2]
PLACE = ROOT / 'launch/serve'
KUBERNETES = '1.32'
CLUSTERS = ('gpu', 'tpu')


def read_steps() -> list[tuple[str, str]]:
  """Instructions of the image and their arguments."""
  parser = dockerfile_parse.DockerfileParser(str(PLACE / 'Dockerfile'))
  return [(step['instruction'], step['value']) for step in parser.structure]


def read_deployment(name: str) -> dict:
  deployment, _ = yaml.safe_load_all((PLACE / f'{name}.yaml').read_text())
  return deployment['spec']['template']['spec']


def test_the_image_has_no_faults_that_a_linter_knows():
  linter = pathlib.Path(sys.executable).with_name('hadolint')
  done = subprocess.run([linter, PLACE / 'Dockerfile'], capture_output=True, text=True)
  assert not done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize('name', CLUSTERS)
def test_a_cluster_takes_it(name):
  deployment, service = yaml.safe_load_all((PLACE / f'{name}.yaml').read_text())
  for one in (deployment, service):
    kubernetes_validate.validate(one, KUBERNETES, strict=True)
  spec = deployment['spec']
  assert service['spec']['selector'] == spec['selector']['matchLabels']
  assert service['spec']['selector'].items() <= spec['template']['metadata']['labels'].items()
  (container,) = spec['template']['spec']['containers']
  volumes = {volume['name'] for volume in spec['template']['spec']['volumes']}
  assert {mount['name'] for mount in container['volumeMounts']} == volumes
  ports = {port['name'] for port in container['ports']}
  assert {port['targetPort'] for port in service['spec']['ports']} <= ports
  # What is tried below of one of them is true of both.
  (other,) = read_deployment('gpu')['containers']
  assert container['args'] == [argument.replace('/gpu', f'/{name}') for argument in other['args']]
  assert container['readinessProbe'] == other['readinessProbe']


@pytest.mark.slow
def test_the_image_can_be_made(tmp_path):
  """On a machine that has nothing but Python and the files that the image copies."""
  inside = tmp_path / 'srv'
  inside.mkdir()
  shown = (PLACE / 'Dockerfile.dockerignore').read_text().split()
  python = tmp_path / 'environment/bin'
  subprocess.run([sys.executable, '-m', 'venv', python.parent], check=True)
  # Whatever accelerator it is for, of which a driver would be needed to try more.
  variables = {'PATH': f'{python}:/usr/bin:/bin', 'HOME': str(tmp_path), 'EXTRAS': 'serve'}
  kept = {key: os.environ[key] for key in os.environ if key.lower().startswith(('pip', 'http'))}
  for step, value in read_steps():
    if step == 'COPY':
      *sources, target = value.split()
      for source in sources:
        assert f'!{source}' in shown
        if (ROOT / source).is_dir():
          shutil.copytree(ROOT / source, inside / target)
        else:
          shutil.copy(ROOT / source, inside / target)
    if step == 'RUN':
      subprocess.run(value, shell=True, check=True, cwd=inside, env={**kept, **variables})
  (entry,) = [json.loads(value) for step, value in read_steps() if step == 'ENTRYPOINT']
  done = subprocess.run(
    [*entry, '--workdir=/nowhere', '--port=0', '--health_port=0'],
    env=variables,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  # As far as it comes without a checkpoint.
  assert 'page, health, readiness, metrics: http://0.0.0.0:' in done.stdout
  assert '/nowhere' in done.stderr, done.stderr
  assert done.returncode == 2


@pytest.mark.slow
def test_the_program_starts_as_the_cluster_starts_it(smoke_run, tmp_path):
  spec = read_deployment('gpu')
  (container,) = spec['containers']
  ports = {port['name']: port['containerPort'] for port in container['ports']}
  before = list_files(smoke_run)
  # Each volume is a directory; a read-only one is written to by nobody.
  places = {mount['mountPath']: tmp_path / mount['name'] for mount in container['volumeMounts']}
  places['/checkpoint'] = smoke_run
  for place in places.values():
    place.mkdir(exist_ok=True)
  key = places['/keys'] / 'key'
  key.write_text('a-key-of-24-characters..\n')
  key.chmod(0o400)  # There root's, or its group's; tests/serving/test_server.py has both.
  arguments = []
  for argument in container['args']:
    path = re.search('=(/[^/]+)', argument)
    if path:
      argument = argument.replace(path[1], str(places[path[1]]), 1)
    arguments.append(argument)
  chosen = {'policy': programs.free_port(20000, 30000), 'health': programs.free_port(30000, 40000)}
  assert ports == {'policy': 8000, 'health': 8001}  # The defaults, which the test replaces.
  flags = (f'--port={chosen["policy"]}', f'--health_port={chosen["health"]}')
  program = programs.Program('wam_jax.serve', '--host=0.0.0.0', *arguments, *flags)

  probe = container['livenessProbe']['httpGet']
  wait_for(program, chosen[probe['port']], probe['path'])
  probe = container['readinessProbe']['httpGet']
  wait_for(program, chosen[probe['port']], probe['path'])
  program.send_signal(signal.SIGTERM)
  stdout, stderr = program.communicate(spec['terminationGracePeriodSeconds'])
  assert program.returncode == 0, stderr
  assert stdout.endswith('stopped\n')
  assert all(json.loads(line) for line in stderr.splitlines() if line.startswith('{'))
  assert list_files(smoke_run) == before
  assert any((places['/programs'] / 'gpu').iterdir())


def list_files(place: pathlib.Path) -> dict[str, int]:
  return {str(path): path.stat().st_mtime_ns for path in sorted(place.rglob('*'))}


def wait_for(program: programs.Program, port: int, path: str) -> None:
  while True:
    assert program.poll() is None, program.communicate()
    try:
      with urllib.request.urlopen(f'http://127.0.0.1:{port}{path}', timeout=5):
        return
    except OSError:
      time.sleep(0.1)


@pytest.fixture(scope='module')
def smoke_run(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('smoke')
  flags = shlex.split(f'--config=configs/tiny.py:smoke --workdir={root}/run')
  done = programs.run('wam_jax.train', *flags, f'--config.data.root={root}/data')
  assert done.returncode == 0, done.stdout + done.stderr
  return root / 'run'
