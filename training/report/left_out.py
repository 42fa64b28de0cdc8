"""What of the papers' tables doesn't stand beside ours, and why: a line below each of them, by paper and table."""

_OTHER_AT = (
    "Zhang et al. and Lee et al. (one adversarially trained network is shipped, and stands beside Madry et al.'s)"
)

LEFT_OUT = {
    "SOAP, mnist": (
        "Left out of the paper's Table 1: No Def, FGSM AT and PGD AT (no network of ours was trained so on MNIST), "
        "Defense-GAN (no purifier of ours)."
    ),
    "SOAP, cifar10": (
        "Left out of the paper's Table 2: the Wide-ResNet-28 (none is shipped), Pixel-Defend (no purifier of ours) and "
        "FGSM AT (one adversarially trained network is shipped; resnet18-at stands beside PGD AT)."
    ),
    "SOAP, cifar100": "Left out of the paper's Table 3: the Wide-ResNet-28 and FGSM AT, as in Table 2.",
    "SOAP, 4": (
        "Left out of the paper's Table 4: No Def, FGSM AT and PGD AT, as in Table 1. The oracle picks among candidates "
        "for attacks on the classifier alone, so under substitutes it has the paper's figures and none of ours."
    ),
    "AID, 1 and 7": (
        "The figures in brackets are Table 7's and 10's, CIFAR-10. Left out of the paper's: PixelDefend and "
        f"Defense-GAN, alone and with AID (no purifiers of ours), {_OTHER_AT}."
    ),
    "AID, 3 and 10": (
        "Left out of the paper's: SVHN, CIFAR-100 and TinyImageNet (other data), PixelDefend (no purifier of ours), "
        f"{_OTHER_AT}; its column Worst is in Tables 1 and 7."
    ),
    "AID, 4": (
        "Left out of the paper's: nothing. Its transferred attacks are the worst of PGD, C&W, DeepFool and MIM."
    ),
    "AID, 11": "Left out of the paper's: nothing.",
    "AID, 13": "Left out of the paper's: nothing.",
    "NRP, 1": (
        "The paper's are on ImageNet. Left out: JPEG, TVM, NIPS-r3, R&P, HGD, APE-GAN and SR (no purifiers of ours), of "
        "every source."
    ),
    "NRP, 2": (
        "Left out of the paper's: JPEG, TVM and MF (no purifiers of ours), detection and segmentation (no such networks "
        "here)."
    ),
    "Reverse, 1": (
        "Left out of the paper's: TRADES, BagT, MART, AWP and Semi-SL (Wide-ResNets; none is shipped). Its C&W takes 200 "
        "steps within 8/255; ours is in l_2, 0.5, 3 x 50 steps."
    ),
    "Reverse, 5": (
        "Left out of the paper's: TRADES, BagT, Semi-SL, AWP and MART, as in Table 1. Its C&W takes 200 steps, ours 3 x "
        "50."
    ),
    "Reverse, 6": (
        "Left out of the paper's: 500 steps (ours takes 50; 500 leave 0.2 to 0.9 less before purification and 0.8 less "
        "to 0.1 more after it), and Semi-SL, as in Table 1."
    ),
    "Pix2Pix, 1": (
        "Left out of the paper's: nothing. It prints 31/22 for VGG-19 under VGG-16, one block, 16/255, which we read as "
        "31.22."
    ),
    "Pix2Pix, 3": "Left out of the paper's: nothing.",
    "Pix2Pix, 2 and 4": (
        "Left out of the paper's: nothing. The paper contradicts itself: distorted features of 16/255, made on VGG-19, "
        "leave ResNet-18 11.17 in Table 2 and 13.80 in Tables 1 and 3, which is the one in brackets; 11.17 is VGG-16's "
        "there."
    ),
}
