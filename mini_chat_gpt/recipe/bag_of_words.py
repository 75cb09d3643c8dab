"""A classifier that counts words, from scikit-learn: the baseline of a recipe that sorts texts into labels."""

from __future__ import annotations

from collections.abc import Sequence


def bag_of_words_labels(training: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """The labels that a logistic regression predicts for texts, trained on (text, label) pairs.

    Its features are words and pairs of words, weighted by TF-IDF. The strength of the regularization is chosen by
    cross-validation on the training pairs. Needs scikit-learn.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline

    labels = [label for _, label in training]
    if len(set(labels)) < 2:
        return [labels[0]] * len(texts)
    folds = min(5, *(labels.count(label) for label in set(labels)))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
    if folds > 1:
        splits = StratifiedKFold(folds, shuffle=True, random_state=0)
        model = GridSearchCV(model, {"logisticregression__C": [0.3, 1, 3, 10, 30, 100]}, cv=splits)
    model.fit([text for text, _ in training], labels)
    return [str(label) for label in model.predict(list(texts))]
