// SPDX-License-Identifier: Apache-2.0
/* A program that was deleted while it runs, with a deleted file mapped private and shared, and open. */
/* wl: dump=--ghost-limit=4M */
#include "fd.h"

int main(int argc, char **argv)
{
	char path[PATH_MAX] = "", text[2 * WL_PAGE];
	if (argc == 1) {
		int from = MUST(open("/proc/self/exe", O_RDONLY)), to = MUST(open("program", O_WRONLY | O_CREAT | O_EXCL, 0755));
		ssize_t n;
		while ((n = MUST(read(from, text, sizeof text))) > 0)
			fd_put(to, text, (size_t)n);
		close(from);
		close(to);
		MUST(execl("program", argv[0], "again", NULL));
	}
	wl_begin();
	MUST(unlink("program"));
	int fd = fd_make("mapped", "");
	for (int i = 0; i < 16; i++) {
		memset(text, 'a' + i, WL_PAGE);
		fd_put(fd, text, WL_PAGE);
	}
	char *private = MUST(mmap(NULL, 16 * WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	char *shared = MUST(mmap(NULL, 16 * WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *reading = MUST(mmap(NULL, WL_PAGE, PROT_READ, MAP_SHARED, fd, WL_PAGE));
	MUST(unlink("mapped"));
	private[0] = 'P';
	shared[WL_PAGE] = 'S';
	struct fd_facts was = fd_look(fd);
	wl_ready_wait();
	fd_check(&was, "mapped file");
	MUST(readlink("/proc/self/exe", path, sizeof path - 1));
	CHECK(strstr(path, "/program (deleted)"), "the program is %s", path);
	CHECK(private[0] == 'P' && private[1] == 'a' && shared[0] == 'a', "first page");
	CHECK(private[WL_PAGE] == 'S' && reading[0] == 'S' && private[2 * WL_PAGE - 1] == 'b', "second page");
	shared[WL_PAGE + 1] = 'T';
	CHECK(reading[1] == 'T' && private[WL_PAGE + 1] == 'T', "the areas are not of one file");
	CHECK(pread(fd, text, 2, WL_PAGE) == 2 && text[1] == 'T', "the descriptor is of another file");
	CHECK(access("program", F_OK) == -1 && access("mapped", F_OK) == -1, "a name is back");
	wl_pass();
}
