// SPDX-License-Identifier: Apache-2.0
/* Pseudo-terminals with gaps in their numbers, made in another order than their descriptors', one pair split over tasks. */
/* wl: */
#include "tty.h"

static struct tty kept[4], split;

static void child(void *argument)
{
	(void)argument;
	close(split.master);
	for (int i = 0; i < 4; i++)
		close(kept[i].master), close(kept[i].slave);
	wl_child_ready_wait();
	fd_expect_text(split.slave, "to the child", "child");
	fd_put(split.slave, "to the parent", 13);
}

int main(void)
{
	struct tty all[8];
	wl_begin();
	for (int i = 0; i < 8; i++)
		all[i] = tty_make(0);
	for (int i = 0; i < 8; i++)
		if (i % 2) /* keep the odd ones, the highest number on the lowest descriptors */
			kept[3 - i / 2] = all[i];
		else
			close(all[i].master), close(all[i].slave);
	split = tty_make(O_CLOEXEC);
	for (int i = 0; i < 4; i++)
		tty_raw(kept[i].slave);
	tty_raw(split.slave);
	pid_t pid = wl_child(child, NULL);
	close(split.slave);
	wl_ready_wait();
	for (int i = 0; i < 4; i++) {
		tty_check_pair(&kept[i]);
		fd_put(kept[i].master, "x", 1);
		fd_expect_text(kept[i].slave, "x", "slave");
	}
	fd_put(split.master, "to the child", 12);
	wl_end(pid);
	fd_expect_text(split.master, "to the parent", "parent");
	wl_pass();
}
