// SPDX-License-Identifier: Apache-2.0
/* Pairs of UNIX seqpacket sockets: see sk_pair.h. */
/* wl: */
#define PAIR_TYPE SOCK_SEQPACKET
#include "sk_pair.h"
