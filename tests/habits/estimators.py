"""What scikit-learn's users do with the estimators: weights, labels, sparse rows."""

from habits import Habit

TINY = "hidden_sizes=(4,), epochs=2, folds=2, networks=1, random_state=0"
CLASSIFIER = f"kk.sklearn.KAREClassifier({TINY})"
REGRESSOR = f"kk.sklearn.KARERegressor({TINY})"

HABITS = [
    Habit(f"{CLASSIFIER}.fit(x, words).predict(x[:3])", gives="set(out) <= set(words)"),
    Habit(
        f"{CLASSIFIER}.set_params(class_weight='balanced').fit(x, bits).score(x, bits)",
        gives="out > 0.6",
    ),
    Habit(
        f"{REGRESSOR}.fit(x, y[:, 0], sample_weight=1.0 + bits).score(x, y[:, 0])",
        gives="out > 0.5",
    ),
    Habit(
        f"{REGRESSOR}.fit(x, y[:, 0], sample_weight=bits - 1)",
        says="`sample_weight` must be finite, and not negative",
    ),
    Habit(
        "import scipy.sparse\n"
        f"{REGRESSOR}.fit(scipy.sparse.csr_matrix(x), y[:, 0]).predict(x[:2])",
        gives="out.shape == (2,)",
    ),
    Habit(
        "import scipy.sparse\n"
        f"{REGRESSOR}.fit(scipy.sparse.csr_matrix((10**6, 10**7)), y[:, 0])",
        says="TruncatedSVD",
    ),
    Habit(
        f"{CLASSIFIER}.fit(x, np.stack([bits, codes > 0], 1)).predict_proba(x)",
        gives="out.shape == (60, 2) and np.all((out > 0) & (out < 1))",
    ),
    Habit(f"{CLASSIFIER}.fit(x, np.stack([bits, codes], 1))", says="MultiOutputClassifier"),
    Habit(
        "from sklearn.inspection import permutation_importance\n"
        f"fitted = {REGRESSOR}.fit(x, y[:, 0])\n"
        "permutation_importance(fitted, x, y[:, 0], random_state=0).importances_mean",
        gives="set(np.argsort(out)[2:]) == {0, 1}",
    ),
    Habit(
        f"{REGRESSOR}.fit(x, y[:, 0]).feature_importances_",
        gives="set(np.argsort(out)[2:]) == {0, 1} and np.isclose(out.sum(), 1.0)",
    ),
    Habit(
        "from sklearn.inspection import partial_dependence\n"
        f"fitted = {REGRESSOR}.fit(x, y[:, 0])\n"
        "partial_dependence(fitted, x, [0], grid_resolution=5)['average']",
        gives="out.shape == (1, 5)",
    ),
    Habit(
        f"fitted = {CLASSIFIER}.fit(x, words)\n"
        "fitted.predict_log_proba(x), fitted.predict_proba(x)",
        gives="np.allclose(np.exp(out[0]), out[1])",
    ),
    Habit(
        f"{CLASSIFIER}.fit(x, np.where(bits, 'a', None))",
        says="`y` must hold numbers or labels of one type, without holes",
    ),
    Habit(
        f"{REGRESSOR}.set_params(time_budget=1e-6).fit(x, y[:, 0])",
        says="There was no time to train; a larger `time_budget`",
        gives="True",
    ),
    Habit(
        f"{REGRESSOR}.fit([[0.1, 'red'], [0.2, 'blue']] * 9, range(18))",
        says="Column 1 of `X` must hold numbers, or be listed in `categorical_features`",
    ),
    Habit(
        "kk.sklearn.KARERegressor(random_state='a').fit(x, y)", says="`random_state` must"
    ),
    Habit(
        "kk.sklearn.KARERegressor(standardize='yes').fit(x, y)", says="`standardize` must"
    ),
    Habit(
        f"{REGRESSOR}.set_params(centres=20).fit(x, y[:, 0]).approximation_['centres']",
        gives="10 <= out <= 20",
    ),
]
