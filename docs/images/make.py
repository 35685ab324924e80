"""Pictures of the README and the documentation.

python docs/images/make.py curves     # from the results of benchmarks/compare.py
python docs/images/make.py landing    # trains LunarLander-v3 and records a landing
python docs/images/make.py help       # the help of A3C
"""

import io
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
WIDTH, HEIGHT, EVERY = 330, 220, 4  # pixels; frames of 20 ms


def curves() -> None:
    """Copies the learning curves of A3C and A2C on LunarLander-v3."""
    shutil.copy(ROOT / "benchmarks/results/compare_LunarLander-v3.png", HERE / "curves.png")


def landing() -> None:
    """Records the greedy episode with the highest return of 10, after training with the preset."""
    from PIL import Image

    from hogwild_rl import a3c

    with tempfile.TemporaryDirectory() as folder:
        env = "LunarLander-v3"
        agent = a3c.train(a3c.Config(env=env, workers=2, run_dir=f"{folder}/run", quiet=True))
    env, best, frames = agent.make_env(render_mode="rgb_array"), -1e9, []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        shown, total, ended = [env.render()], 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            shown.append(env.render())
            total, ended = total + float(reward), terminated or truncated
        if total > best and not truncated:
            best, frames = total, shown
    print(f"return {best:.1f}, {len(frames)} frames")
    images = [
        Image.fromarray(frame).resize((WIDTH, HEIGHT)).quantize(16, dither=Image.Dither.NONE)
        for frame in [*frames[::EVERY], *[frames[-1]] * 12]
    ]
    images[0].save(
        HERE / "landing.gif", save_all=True, append_images=images[1:], duration=80, loop=0
    )


def help_picture() -> None:
    """Renders the first 40 lines of A3C's help as SVG."""
    from rich.console import Console
    from rich.text import Text

    command = [sys.executable, "-m", "hogwild_rl.a3c", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=82, file=io.StringIO())
    console.print(Text("\n".join(text.splitlines()[:40])))
    console.save_svg(str(HERE / "help.svg"), title="hogwild-rl a3c --help")


if __name__ == "__main__":
    {"curves": curves, "landing": landing, "help": help_picture}[sys.argv[1]]()
