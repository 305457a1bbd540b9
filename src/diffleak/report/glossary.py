"""What the words of a page mean: a page's glossary has an entry for every term that it prints.

A word that another page uses for something else, such as threshold, is in `OF_ATTACKS`: it has this meaning on the pages that measure
attacks, and every other page explains it by an entry of its own. `TERMS` mean the same on all pages.
"""

import re

from diffleak.report.wording import triples

# name, pattern that finds it in a page, meaning
OF_ATTACKS = triples(r"""
    Member | \bmembers?\b | an image that the model was trained on; a held-out image comes from the same source but was not used for
        training.
    Held-out image | \bheld[- ]out\b | an image of the same source that the model was not trained on; it shows which scores such
        images get.
    Group | \bgroups? of members\b|\bheld-out groups?\b|\bCounted by group\b | images that belong together, such as those of one
        person; its score is the mean of theirs, and rates are of groups.
    AUC | \bAUCs?\b | how often an attack ranks a random member above a random held-out image; 0.5 is guessing, 1 is always right.
    TPR at 1 % FPR | \b[TF]PRs?\b | true-positive rate at a false-positive rate: the share of members that an attack catches when it
        may raise a false alarm for 1 % of the held-out images.
    TNR at 1 % FNR | \b(?:TNR|FNR)s?\b | true-negative rate at a false-negative rate: the share of held-out images that are cleared
        when 1 % of the members may be missed.
    False alarm | \bfalse alarms?\b | a held-out image that an attack takes for a member.
    Attack success | \battack success\b | the share of right answers, member or not, at the threshold that was set on the calibrate
        part.
    Baseline | \bbaselines?\b | the attack success of always naming the larger side, without looking at the model.
    Achieved FPR | \bachieved FPR\b | the false alarms on the test part at the threshold that was set for a target on the calibrate
        part.
    Oracle | \boracle\b | the number of an attack whose setting is chosen on the test images themselves. Papers often print it; it is
        too high.
    Threshold | \bthresholds?\b | the score above which an attack calls an image a member.
    ROC | \bROC\b | the curve of members caught against false alarms, over all thresholds.
    Calibrate, test part | \b(?:calibrate|test) part\b | settings are chosen on the calibrate part; every number in the verdict comes
        from the test part.
    Reference | \bthe reference\b|\breferences?, | a model without the training that is audited, such as the one that was fine-tuned;
        its scores are those that the images get without that training.
    Guess, guessing | \bguess(?:es|ed|ing)?\b | an answer, member or held out. Guessing means to toss a coin for each image: half of
        such guesses are right.
    Gate, limit | \blimits? (?:set|agreed)\b|\bLimits: | the largest value that is allowed; agree on it before the training. It is met if
        the whole 95 % interval is at or below it; for the AUC, except that of an excess, the interval must also stay at or above
        1 minus the limit. A limit on epsilon is met if the lower bound is at or below it.
""")
TERMS = triples(r"""
    Membership inference | \bmembership\b | to find out if an image was in the training data. An attacker must have the image to test
        it.
    Attack | \battacks?\b | a published procedure that gives an image a score by the model's answers; a high score is evidence for
        a training image.
    sima, pia, secmi, clid, ... | \b(?:sima|pian?|secmi|clid|pfami|sima_mc)\b | names of published attacks; with [excess],
        [calibrated] or a mask (a choice of latent coordinates) behind it, a variant of one. `diffleak attacks` says what each looks at.
    Interval, 95 % | \bintervals?\b | the range of values that agree with the measurement: in 95 of 100 repetitions with other images
        it contains the true value.
    DeLong | \bDeLong\b | the method of the interval of an AUC (DeLong, DeLong and Clarke-Pearson 1988).
    Bootstrap | \bbootstrap | a method for intervals: the images are drawn again many times, and the number is computed each time.
    Jackknife | \bjackknife\b | a method for intervals: the number is computed again with each image left out in turn.
    Permutation | \bpermut | a method of testing: the images are divided at random many times, to see what chance alone gives.
    p-value (p) | \bp = |\bp-values?\b | the probability of a finding at least as strong where there is nothing to find; small values
        are evidence against chance.
    n/e | \bn/e\b | not estimable; the reason stands beside it.
    Timestep | \btimesteps?\b | how much noise is added to an image before the model sees it; each attack has one at which it works
        best.
    Noise prediction | \b(?:noise predictions?|predictions of the noise)\b | what a diffusion model computes: its estimate of the
        noise in an image.
    Query, forward | \b(?:quer(?:y|ies)|forwards?)\b | one run of the model's network for one image.
    Chunk | \bchunks?\b | a part of the work that is saved when it is done; an interrupted audit resumes after the last one.
    Black-box, grey-box, white-box | \b(?:black|grey|white)-box\b | what an attacker must have: drawn images alone; the model's
        predictions for images of one's choice; the weights. Someone with the weights has all three.
    Form of release | \b(?:form of release|release)\b | what outsiders get: the weights, an interface that draws images for its
        callers, or drawn images alone.
    Weights | \bweights\b | the numbers that a model consists of; with them anyone can run it on a machine of their own.
    Pixel statistics | \bpixel statistics?\b | simple measures of an image, such as brightness and contrast. They need no model; if
        they separate the sides, the comparison is unfair.
    Fingerprint | \bfingerprints?\b | a number computed from the whole content of a file; if the content changes, the number changes.
    SHA-256 | \bSHA-256\b|sha256: | the method of a fingerprint; the same file always gives the same 64 digits.
    Seed | \bseeds?\b | the number from which random draws start; the same seed gives the same draws.
    Calibrated | \bcalibrated\b | corrected for how simple an image is: an attack's score minus what the complexity of the image
        (compressed size, frequencies) predicts. This is not the calibrate part.
    Combined | \bcombined\b | one logistic regression on the numbers of several attacks.
    Excess | \bexcess\b | an attack's score of an image in the audited model minus its score of the same image in the reference.
    Latent | \blatents?\b | the compressed form of an image that the diffusion model works on; its numbers are the latent coordinates.
    Decoder | \bdecoders?\b | the part of the model that turns a latent into a picture.
    Autoencoder | \bautoencoders?\b | the encoder, which turns a picture into a latent, and the decoder.
    Influence | \binfluence\b | how much the decoded picture changes when one latent coordinate changes a little.
    Distortion | \bdistortion\b | how strongly the decoder stretches small steps around an image's latent; one number per image.
    Mask | \bmask(?:s|ed)?\b | leaves a share of the latent coordinates out of an attack, such as the 40 % of lowest influence
        (influence:0.4).
    LoRA | \bLoRAs?\b | a small file that a fine-tuning writes, and that changes the model it is loaded into.
    DP-SGD | \bDP-SGD\b | training with added noise, which limits by epsilon what the model can reveal of any one image.
    Epsilon, delta | \bepsilons?\b|\bdelta\b | how strongly one image can change a trained model: it multiplies the probability of any
        outcome by at most e^epsilon, up to a small probability delta. Smaller is stricter; 0 reveals nothing.
    Coin | \bcoins?\b | a random choice with probability one half, made for each image by itself: is it trained on or held out?
    Near-duplicate, cluster | \bnear-duplicates?\b|\bclusters?\b | images that are copies of each other or nearly so, such as one
        image encoded twice; together they are a cluster, which counts as one image.
    Checkpoint | \bcheckpoints?\b | the model, or the adapter, as it was after a number of training steps.
    KID | \bKID\b | kernel inception distance: how far two sets of images are from each other, to a network that describes images.
""")
CASED = ("AUC", "ROC", "KID", "n/e", "p-value (p)")


def terms_in(text: str, of_attacks: bool = False) -> tuple[tuple[str, str], ...]:
    """The entries for the terms in a text, in the order of the lists; of_attacks: with those of the pages that measure attacks."""
    known = (*OF_ATTACKS, *TERMS) if of_attacks else TERMS
    return tuple((name, said) for name, pattern, said in known if re.search(pattern, text, 0 if name in CASED else re.IGNORECASE))
