// SPDX-License-Identifier: Apache-2.0
/* Pairs of UNIX dgram sockets: see sk_pair.h. */
/* wl: */
#define PAIR_TYPE SOCK_DGRAM
#include "sk_pair.h"
