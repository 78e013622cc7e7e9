/* fence.pml - one key, any number of nodes, a faultless feed: fills, flights, L2, stamping forward, floor,
 * bootstrap (DESIGN.md sections 4 and 6).  Numbers in [] are the steps of section 6.
 *
 * Positions are 1..EVENTS.  Change k of the session commits as version k and is announced by an event
 * afterwards, late or out of order.  One node is modelled in full; all `others` together, however many
 * and however far behind, are what they can do to it: put entries into the redis tier.
 * Time is one ghost: `due`, the newest position older than max_staleness.  A lease is valid as long
 * as every due event is applied; feed.pml and sources.pml check that real leases end by then.
 * Freezing (SIGSTOP) is a node not being scheduled; every step below may wait for ever.            */
#define CHANGES 2                  /* change 1 names the session, change 2 the identity              */
#ifdef OTHER
#define EVENTS  3                  /* and a third event that names somebody else                     */
#else
#define EVENTS  2
#endif
#define MAX(a, b)  ((a) > (b) -> (a) : (b))

byte ver;                          /* origin: changes committed so far                               */
byte tail, trim, due;              /* feed: newest event, newest event trimmed away; the ghost above */
byte names[EVENTS+1];              /* feed: which id the event at p names: 0 session, 1 identity, 2 other */
byte need[EVENTS+1];               /* ghost: the version that reflects all events up to p            */
bool sent[EVENTS+1];
bool l2; byte l2v, l2a;            /* redis tier: version and as_of; nothing ever expires here       */

#define LEASE      (applied >= due)
#define ADMITS(a)  ((a) >= floor && (a) >= newest[0] && (a) >= newest[1])   /* the one predicate     */
#define CACHED(v)  assert((v) >= need[applied] && (v) >= need[due])         /* the one invariant     */
#define LEARN(p)   newest[names[p]] = MAX(p, newest[names[p]])
#define KEEP(ver, at) l1 = 1; l1v = ver; l1a = at
#define END_FLIGHT fl = 0; as_of = 0; late = 0; must = 0; v = 0

#ifdef BUG_NO_LEASE_ON_HIT
#define LEASE_ON_HIT true
#else
#define LEASE_ON_HIT LEASE
#endif
#ifdef BUG_NO_LEASE_AFTER_READ
#define LEASE_AFTER_READ true
#else
#define LEASE_AFTER_READ LEASE
#endif
#ifdef BUG_JOIN_UNFENCED
#define JOINER_MAY_HAVE LEASE_AFTER_READ
#else
#define JOINER_MAY_HAVE (ADMITS(as_of) && LEASE_AFTER_READ)
#endif
#ifdef BUG_L2_UNFENCED
#define L2_ADMITS true
#else
#ifdef BUG_L2_ASKS_NO_FLOOR
#define L2_ADMITS (l2a >= newest[0] && l2a >= newest[1])
#else
#define L2_ADMITS ADMITS(l2a)
#endif
#endif
#ifdef BUG_STAMP_TO_TAIL
#define STAMP tail
#else
#define STAMP applied
#endif
#define READ fl = 3; as_of = applied                  /* [5] taken when the origin is asked, every time   */
#ifdef STORE_UNASKED               /* not a bug: every reader asks again                             */
#define MAY_STORE true
#else
#define MAY_STORE ADMITS(as_of)
#endif
#ifdef BUG_DROP_KEEPS_FLOOR
#define FORGET(i) newest[i] = 0
#else
#define FORGET(i) floor = MAX(floor, newest[i]); newest[i] = 0
#endif

active proctype node() {
  byte applied, floor, newest[3];                 /* position and fence                              */
  bool l1; byte l1v, l1a;                         /* memory tier: version and as_of                  */
  byte fl, as_of, v;                              /* flight: 1 started, 2 reading L2, 3 at the origin, 4 read */
  byte must;                                      /* ghost: what those who joined before the run may demand   */
  bool late;                                      /* somebody joined after the run began             */
#ifdef BUG_POSITION_BEFORE_FENCE
  byte pending;
#endif
#ifdef RESTART
  byte low; bool restarted;                       /* backwards replay has reached `low`              */
#endif

  do /* ---------------- requests ---------------- */
  :: atomic { l1 && ADMITS(l1a) && LEASE_ON_HIT -> CACHED(l1v);                              /* [3] */
       l1a = MAX(l1a, STAMP) }                                            /* stamping forward, sec. 4 */
  :: d_step { fl == 0 -> fl = 1; must = MAX(need[applied], need[due]) }                     /* [4] */
  :: d_step { fl == 1 || fl == 2 -> must = MAX(must, MAX(need[applied], need[due])) }  /* [4] joined in time */
  :: d_step { fl >= 3 && !late -> late = 1 }                         /* [4] joined after the read began */

     /* ---------------- the flight ---------------- */
  :: d_step { fl == 1 && l2 -> fl = 2 }                                                       /* [6] */
  :: d_step { fl == 1 -> READ }                                      /* [6] no entry; [7] lock or not */
  :: atomic { fl == 2 -> if
       :: L2_ADMITS && LEASE_AFTER_READ -> CACHED(l2v); KEEP(l2v, l2a); END_FLIGHT
#ifdef BUG_L2_TO_EARLY_WAITERS            /* section 4's "got without a lease" read literally        */
       :: else -> assert(l2v >= must); END_FLIGHT
#else
       :: else -> READ
#endif
       fi }
  :: d_step { fl == 3 -> v = ver; fl = 4 }                                   /* [8] snapshot at origin */
  :: d_step { fl == 4 -> READ; v = 0 }                             /* [8] a 401 that is not believed yet */
  :: atomic { fl == 4 ->                                                                      /* [9] */
#ifdef BUG_ASOF_AFTER_READ
       as_of = applied;
#endif
       if :: MAY_STORE -> KEEP(v, as_of); l2 = 1; l2v = v; l2a = as_of :: else fi;
       assert(v >= must);
       if :: late && !JOINER_MAY_HAVE ->                                                /* the next run */
             fl = 1; must = MAX(need[applied], need[due]); late = 0; v = 0; as_of = 0
          :: else -> if :: late -> CACHED(v) :: else fi; END_FLIGHT
       fi }

     /* ---------------- the feed, section 5 ---------------- */
#ifdef BUG_POSITION_BEFORE_FENCE
  :: d_step { !pending && trim <= applied && applied < tail -> applied++; pending = applied }
  :: d_step { pending -> LEARN(pending); pending = 0 }
#else
  :: d_step { trim <= applied && applied < tail -> applied++; LEARN(applied) }     /* confirm: a page */
#endif
  :: d_step { applied < trim -> applied = tail; floor = tail; newest[0] = 0; newest[1] = 0; newest[2] = 0 } /* RESETTING */
  :: d_step { applied < tail -> LEARN(tail) }                           /* wake-up XREAD: fence only */
  :: d_step { newest[0] -> FORGET(0) }                                   /* a bucket drops, age or cap */
  :: d_step { newest[1] -> FORGET(1) }
#ifdef OTHER
  :: d_step { newest[2] -> FORGET(2) }
#endif
#ifdef RESTART       /* BOOTSTRAPPING: floor = tail; replays backwards, lowering the floor as it goes */
  :: d_step { !restarted -> restarted = 1; applied = tail; floor = tail; low = tail;
       newest[0] = 0; newest[1] = 0; newest[2] = 0;
       l1 = 0; l1v = 0; l1a = 0; END_FLIGHT }
  :: d_step { restarted && floor == low && low > trim + 1 -> LEARN(low); low--; floor = low }
#ifdef BUG_FLOOR_BELOW_WINDOW             /* "the whole window was read, so admit everything"        */
  :: d_step { restarted && floor == low && low == trim + 1 -> LEARN(low); low = 0; floor = 0 }
#endif
#endif
  od
}

#ifdef OTHERS
active proctype others() {         /* as_of is any position some node may have applied; then it reads */
  byte at, v;
  do
  :: atomic { at = 0; do :: at < tail -> at++ :: break od }
     d_step { v = ver }
     d_step { l2 = 1; l2v = v; l2a = at; v = 0; at = 0 }
  od
}
#endif

active proctype world() {
  do
  :: d_step { ver < CHANGES -> ver++ }                                                   /* commit   */
  :: d_step { ver >= 1 && !sent[1] -> sent[1] = 1; tail++; names[tail] = 0; need[tail] = MAX(1, need[tail-1]) }
  :: d_step { ver >= 2 && !sent[2] -> sent[2] = 1; tail++; names[tail] = 1; need[tail] = 2 }
#ifdef OTHER
  :: d_step { !sent[3] -> sent[3] = 1; tail++; names[tail] = 2; need[tail] = need[tail-1] }
#endif
  :: d_step { due < tail -> due++ }                                                      /* time     */
  :: d_step { trim + 1 < tail -> trim++ }                                                /* retention */
  od
}
