import os
import pathlib
import subprocess
import sys

if 'google.colab' in sys.modules and not pathlib.Path('wam_jax').exists():
  if not REPOSITORY:
    raise ValueError(
      'REPOSITORY is empty: write in this cell where the project is, as '
      'https://github.com/OWNER/NAME, and run the cell again.'
    )
  subprocess.run(['git', 'clone', '--quiet', REPOSITORY, 'wam_jax'], check=True)
  install = [sys.executable, '-m', 'pip', 'install', '--quiet', '-e', f'wam_jax[{EXTRAS}]']
  subprocess.run(install, check=True)
here = pathlib.Path.cwd()
root = next(path for path in (here, here / 'wam_jax', *here.parents) if (path / 'configs').is_dir())
os.chdir(root)
sys.path.insert(0, str(root))
