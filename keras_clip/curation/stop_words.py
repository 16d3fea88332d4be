"""English words without meaning of their own, which are no queries, and fragments such as the "ll" of "we'll"."""

STOP_WORDS = frozenset(
    """
    a an the this that these those such same other another each every either neither both all any some no none nor not
    few many much more most less least several enough own only very too so quite rather just also even still yet
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves one oneself someone anyone everyone somebody anybody
    everybody nobody something anything everything nothing
    who whom whose which what where when why how whoever whatever whichever whenever wherever
    and or but if because as until while although though unless since whether than then else
    of at by for with about against between into through during before after above below to from up down in out on off
    over under upon within without toward towards onto among amongst across along around behind beside besides beyond
    despite except per via
    again further once here there now ever never always often perhaps however therefore thus hence
    am is are was were be been being have has had having do does did doing done can could will would shall should may
    might must ought cannot let
    s t d ll m o re ve y don didn doesn isn aren wasn weren hasn haven hadn won wouldn shan shouldn couldn mightn mustn
    needn ain
    """.split()
)
