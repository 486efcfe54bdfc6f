"""Cluster embeddings that another program made, with scikit-learn's interface; score them if there are labels.

python examples/embeddings_from_elsewhere.py
"""

from collections.abc import Sequence

from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import train_test_split

from temi import TemiClusterer


def main(settings: Sequence[str] = ()) -> float:
    """Fit on half of scikit-learn's digits, predict the other half; its adjusted Rand index."""
    pixels, digit = load_digits(return_X_y=True)
    seen, new, _, truth = train_test_split(pixels, digit, test_size=0.5, random_state=0)
    clusterer = TemiClusterer(n_clusters=10, settings=settings).fit(seen)
    return float(adjusted_rand_score(truth, clusterer.predict(new)))  # the labels are read here for the first time


if __name__ == "__main__":
    print(f"adjusted Rand index on digits it has not seen: {main():.3f}")
