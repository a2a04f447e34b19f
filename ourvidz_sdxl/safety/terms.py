"""The words that the text check knows, for people to review.

In a term "/" parts the endings and "~" in front finds it within a longer word too. A term of several words is also found written
as one. They stand here in lower case and spelt plainly: repeated letters, digits for letters and look-alikes are the finder's
business. The lists hold what names a thing, in English and a little of other languages, and not every way to hint at it: what no
list can catch is left to the image check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import product
from typing import Final


class Group(StrEnum):
    ABUSE = "abuse"  # names the crime: refused in every text
    SEXUALISED_MINOR = "sexualised_minor"  # a minor and sexual in one word: refused in positive texts
    MINOR = "minor"
    YOUNG = "young"  # near a GIRL, a minor
    SMALL = "small"  # right before a GIRL, a minor
    GIRL = "girl"  # said of adults as often as of children
    SEXUAL = "sexual"  # acts, parts of the body, nudity
    SUGGESTIVE = "suggestive"  # sexual where a minor is
    CLOTHES = "clothes"  # in a negative prompt, it undresses
    ADULT = "adult"  # in a negative prompt, it makes people younger


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(term.split()) for term in text.split(",") if term.strip())


MAJORITY: Final = 18  # years; the platform's line, whatever the law of a place says
NUMBERS: Final = _list(
    """zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen,
    sixteen, seventeen, eighteen, nineteen, twenty"""
)
TENS: Final = _list("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety, hundred")
YEARS_OLD: Final = _list("yo, y old, yr, yrs, yr old, yr olds, yrs old, year old, year olds, years old, years of age")
NOT_YET: Final = _list("under, below, younger than, not yet, almost, nearly")
GRADES: Final = _list(
    """first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth, 1st, 2nd, 3rd, 4th,
    5th, 6th, 7th, 8th, 9th, 10th, 11th, 12th"""
)


def _aged(first: int, last: int) -> tuple[str, ...]:
    """Every age from `first` to `last`, as "12 years old", "twelve-year-old", "aged 12" and the like."""
    said = _said(first, last)
    return _phrases(said, YEARS_OLD) + _phrases(("age", "aged", "ages", "age of", "just turned"), said)


def _said(first: int, last: int) -> tuple[str, ...]:
    return tuple(word for age in range(first, last + 1) for word in (str(age), *NUMBERS[age : age + 1]))


def _phrases(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(" ".join, product(*parts)))


ABUSE: Final = _list(
    """child porn/o/ography, kiddie porn, kiddy porn, kid porn, child erotica, child sex, child rape, underage porn,
    underage sex, preteen porn, preteen sex, minor porn, csam, cp, pthc, toddlercon"""
)

SEXUALISED_MINOR: Final = _list(
    """loli/s, ~lolita/s, ~lolicon/s, shota/s, ~shotacon, pedo/s, ~pedophil/e/es/ia/ic, ~paedophil/e/es/ia/ic, ~jailbait,
    nymphet/s, hebephile, ephebophile, ロリ, ロリコン, ロリータ, ショタ, ショタコン, 萝莉, 蘿莉, 正太, 로리, 쇼타, лоли,
    лолита, лоликон, педофил/ия"""
)

MINOR: Final = (
    *_list(
        """~child/s, ~children, childlike, childish, kid/s/do/die/dies, ~toddler/s, ~infant/s, baby, babies, newborn/s,
        neonate/s, bambino, ~preteen/s, pre teen/s, tween/s, teen/s, teenage/d/r/rs, teenybopper/s, ~teengirl/s, ~teenboy/s,
        youth/s, youngster/s, youngling/s, juvenile/s, adolescent/s, adolescence, pubescent, puberty, ~prepubescent,
        prepuberty, ~underage/d, minor/s, barely legal, young one/s, little one/s, very young, too young, so young,
        extremely young, sweet sixteen, childhood, diaper/s, cherub/s/im, putto, putti, boy/s, ~littleboy/s, ~youngboy/s,
        ~littlegirl/s, ~younggirl/s, ~schoolgirl/s, ~schoolboy/s, school kid/s, school age/d, school uniform/s,
        high school/er/ers, highschool girl/s, middle school/er/ers, junior high, elementary school/er/ers,
        primary school/er/ers, grade school/er/ers, secondary school, nursery school, preschool/er/ers, kindergarten/er/ers,
        kindergartner/s, daycare, girl scout/s, cub scout/s, daughter/s, granddaughter/s, stepdaughter/s, grandson/s,
        stepson/s, niece/s, nephew/s, his son, her son, my son, your son, their son, mother and son, mom and son,
        father and son, dad and son, fillette/s, enfant/s, petite fille, petit garcon, ecoliere, ninita/s, ninito/s,
        menor de edad, menores de edad, colegiala/s, adolescente/s, menina/s, menino/s, crianca/s, garotinha/s,
        kleines madchen, kleiner junge, minderjahrig/e/er/es, schulmadchen, bambina, bambine, bambini, ragazzina, ragazzino,
        minorenne, minorenni, ребенок, дети, девочк/а/и/у/ой, мальчик/а/и, школьниц/а/ы, школьник/и, малолетк/а/и,
        несовершеннолетн/яя/ий/ие/их, подросток, подростки, младенец, 儿童, 兒童, 児童, 小孩, 孩子, 女童, 男童, 幼童, 幼女,
        幼児, 女児, 男児, 婴儿, 嬰兒, 小女孩, 小男孩, 小学生, 小學生, 初中生, 中学生, 中學生, 高中生, 高校生, 女子高生,
        未成年, 少女, 少年, 子供, 子ども, 赤ちゃん, 어린이, 아동, 아이, 아기, 소녀, 소년, 초등학생, 중학생, 고등학생,
        여고생, 미성년, 미성년자"""
    ),
    *_aged(0, MAJORITY - 1),
    *(f"{age}y" for age in range(MAJORITY)),
    *_phrases(_said(0, MAJORITY - 1), ("year", "years"), ("girl", "boy", "female", "male")),
    *_phrases(("looks", "looks like"), _said(8, MAJORITY - 1)),
    *_phrases(NOT_YET, _said(12, MAJORITY)),
    *_phrases(NOT_YET, _said(12, MAJORITY), YEARS_OLD),
    *_phrases(map(str, range(1, 53)), ("month", "months", "week", "weeks"), ("old", "olds")),
    *_phrases(GRADES, ("grade", "grader", "graders")),
)

YOUNG: Final = _list("young/er/est, yung, youthful, underdeveloped, undeveloped, immature")
SMALL: Final = _list("little, small, tiny, lil, smol, wee, flat chested")
GIRL: Final = _list(
    """girl/s, gurl/s, grl/s, lass/es/ie/ies, lad/s, maiden/s, student/s, pupil/s, classmate/s, cheerleader/s, princess/es,
    sister/s, brother/s, sibling/s, cousin/s"""
)

SEXUAL: Final = _list(
    """sex, sexual/ly/ized/ised, sexting, intercourse, making love, make love, lovemaking,
    porn/o/ography/ographic/star/stars, xxx, x rated, nsfw, rule 34, uncensored, hentai, ecchi, ahegao, futanari,
    erotic/a/ally, lewd/s, lascivious, ~nude/s, nudity, nudist/s, ~naked/ness, topless, undressed, undressing, unclothed,
    disrobed, disrobing, no clothes, without clothes, no clothing, without clothing, clothes off, no pants, no panties,
    no underwear, no bra, skinny dipping, breast/s, boob/s/ies, tit/s/ties, titty, nipple/s, areola/s/e, penis/es, phallus,
    cock/s, dick/s, testicle/s, scrotum, vagina/s/l, vulva, pussy, pussies, cunt/s, clit/s/oris, labia, anus, anal,
    asshole/s, genital/s/ia, pubic, ~fuck/s/ed/er/ers/ing, masturbat/e/es/ed/ing/ion, orgasm/s/ic, ejaculat/e/es/ed/ing/ion,
    cum/s/ming/shot/shots, semen, creampie/s, blowjob/s, handjob/s, footjob/s, fellatio, cunnilingus, deepthroat/ing,
    gangbang/s, threesome/s, orgy, orgies, bukkake, doggystyle, missionary position, cowgirl position, sodomy, rape/s/d,
    raping, rapist/s, molest/s/ed/ing/er/ers/ation, incest/uous, bestiality, dildo/s, vibrator/s, buttplug/s, strapon/s,
    bdsm, bondage, shibari, hooker/s, prostitut/e/es/ion, whore/s, slut/s/ty, stripper/s, striptease, camgirl/s, onlyfans,
    milf/s, horny, spread legs, legs spread, spreading legs, grope/d, groping, fondle/d, fondling, desnud/a/o/as/os, sexo,
    tetas, nue/s, nackt/e/er/es/en, titten, nuda, pelada, гол/ая/ый/ые/ую, обнажен/ная/ный/ные, секс, порно, эротика, 裸,
    性交, 性爱, 性愛, 做爱, 色情, 乳房, 乳首, ヌード, セックス, エロ, エッチ, おっぱい, 섹스, 누드, 알몸, 나체, 야동"""
)
SUGGESTIVE: Final = _list(
    """sexy, sexier, sexiest, sensual/ly, seductive/ly, seducing, seductress, provocative/ly, explicit, suggestive/ly,
    fetish/es, kinky, aroused, arousal, erection/s, moan/s/ing, lustful, ass, asses, butt/s, buttock/s, booty, thicc, busty,
    voluptuous, cleavage, crotch, bulge, cameltoe, upskirt, downblouse, see through clothes, see through dress,
    see through shirt, see through blouse, see through top, shirtless, lingerie, underwear, panties, panty, thong/s,
    g string/s, bra/s, bikini/s, pinup/s, boudoir, lap dance, pole dance/r, spank/ed/ing, french kiss/ing, making out"""
)

CLOTHES: Final = _list("cloth, clothes, clothing, clothed, dressed, garment/s, censor/s/ed/ing/ship, sfw")
ADULT: Final = (
    *_list("adult/s/hood, grown, grownup/s, mature, old, older, over 18, above 18, over eighteen"),
    *_aged(MAJORITY, 60),
)

TERMS: Final[Mapping[Group, tuple[str, ...]]] = {
    Group.ABUSE: ABUSE,
    Group.SEXUALISED_MINOR: SEXUALISED_MINOR,
    Group.MINOR: MINOR,
    Group.YOUNG: YOUNG,
    Group.SMALL: SMALL,
    Group.GIRL: GIRL,
    Group.SEXUAL: SEXUAL,
    Group.SUGGESTIVE: SUGGESTIVE,
    Group.CLOTHES: CLOTHES,
    Group.ADULT: ADULT,
}

# What the finder takes for a term by its letters alone, and uses of a term's words in another sense. Nothing is found in them.
ORDINARY: Final = (
    *_list(
        """soon, so on, an all, an al, an us, as s, as sees, put to, put too, put till, see men, seem en, see ex, see x,
        i add, i ad, ill ad, ill add, la add, ill, iii, i oil, till it, till its, t it, t its, but t, pen is, mill if,
        poor no, poor n, shot a, shot as, shot aa, shoot a, shoot as, steps on, steps son, yours on, yours son, hers on,
        hers son, theirs on, ages even, age done, aged done, chili dish, anna li, ana li, who re, we e, her soon, his soon,
        my soon, your soon, their soon, public, assess, brass, grill/s, tilt/s, iliad, malden, rapping, rapped, babble/s,
        annus, loll, snaked, denude/d, cichlid/s, shoota, pantiles, pantless, infantry, infantryman, infantrymen, infantino,
        fairchild, rothschild/s, schwarzschild, hochschild, schilder, childe, childress, childers, brainchild, childbearing,
        childfree, childproof, 1boy, 2boys, 3boys, 4boys, 5boys, 6boys, multiple boys, pool boy/s, delivery boy/s,
        cabana boy/s, cow boy/s, boy band/s, boy toy/s, boy friend/s, lady boy/s, fem boy/s, tom boy/s, beach boys,
        boy shorts, youth hostel, fountain of youth, baby oil, baby blue, baby pink, baby powder, baby doll/s, baby hair/s,
        baby bangs, baby tee, baby bump, baby breath, babys breath, baby grand, sugar baby, sugar babies, kid gloves,
        kid leather, billy the kid, ursa minor, asia minor, minor arcana, minor key, minor chord/s, minor detail/s,
        minor adjustment/s, minor change/s, minor flaw/s, minor imperfection/s, minor scar/s, minor scratch/es,
        minor blemish/es, minor damage, minor injury, minor injuries, minor wrinkles, minor character/s, young woman,
        young women, young man, young men, young adult/s, young lady, young ladies, young couple/s, old fashioned,
        old photo/s, old photograph/s, old film, old paper, old building/s, old house/s, old car/s, old book/s,
        chicken breast/s, turkey breast/s, duck breast/s, breast pocket/s, breast cancer, breast plate/s, pussy willow/s,
        pussy cat/s, pussy riot, moby dick, dick tracy, dick van dyke, dick grayson, philip k dick, blue tit/s, great tit/s,
        coal tit/s, willow tit/s, tailed tit/s, bearded tit/s, cock fight/s, cock of the rock, weather cock/s, cum laude,
        rape seed, rape field/s, oilseed rape, sex pistols, john lee hooker"""
    ),
    *_phrases(
        _list("dirty, torn, ripped, wrinkled, messy, ugly, modern, wet, damaged, deformed, weird, stained"), ("clothes", "clothing")
    ),
    *_phrases(TENS, NUMBERS[1:10], YEARS_OLD),
    *_phrases(("eighty",), YEARS_OLD),
)

# Uses of a sexual word that still paint skin or sex. They are let through only where no minor is in the text.
HARMLESS: Final = _list(
    """nude lipstick, nude makeup, nude heels, nude pumps, nude nails, nude tone/s, nude color/s, nude colour/s,
    nude palette, naked eye, naked mole, naked cake, same sex, opposite sex, strap on, human bondage"""
)
