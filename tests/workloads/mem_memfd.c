// SPDX-License-Identifier: Apache-2.0
/* memfds: mapped shared and private, open and closed, sealed, with a name, a size, a position; written by two processes;
 * one of 3 GiB, nearly all of it a hole. */
/* wl: */
#define _FILE_OFFSET_BITS 64
#include "wl.h"

enum { page = WL_PAGE };
static char *shared;

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	wl_fill(shared + page, page, 11);
	_exit(0);
}

int main(void)
{
	wl_begin();
	int open_one = MUST(memfd_create("kept open", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	int closed_one = MUST(memfd_create("closed", 0));
	int never_mapped = MUST(memfd_create("", MFD_ALLOW_SEALING));
	MUST(ftruncate(open_one, 8 * page));
	MUST(ftruncate(closed_one, 5 * page + 100));
	MUST(ftruncate(never_mapped, 12345));
	shared = MUST(mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, open_one, 0));
	char *other = MUST(mmap(NULL, 6 * page, PROT_READ | PROT_WRITE, MAP_SHARED, closed_one, 0));
	char *private = MUST(mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, open_one, 4 * page));
	close(closed_one);
	wl_fill(shared, page, 1);
	wl_fill(other, 5 * page, 2);
	wl_fill(shared + 5 * page, page, 5);
	wl_fill(private, page, 3);
	MUST(pwrite(never_mapped, "in the middle", 13, 7000));
	MUST(lseek(never_mapped, 7003, SEEK_SET));
	MUST(fcntl(never_mapped, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
	MUST(fchmod(never_mapped, 0640));
	int vast = MUST(memfd_create("vast", MFD_CLOEXEC));
	MUST(ftruncate(vast, 3LL << 30));
	char *begin = MUST(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, vast, 0));
	wl_fill(begin, page, 9);
	MUST(pwrite(vast, begin, page, (3LL << 30) - page));
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	char text[16] = "", link[64] = "";
	struct stat facts;
	wl_same(shared, page, 1, "the first page");
	wl_same(other, 5 * page, 2, "the closed one");
	wl_same(begin, page, 9, "the vast one");
	static char end[page];
	CHECK(pread(vast, end, page, (3LL << 30) - page) == page, "pread");
	wl_same(end, page, 9, "the end of the vast one");
	wl_same(private, page, 3, "a private page of a memfd");
	wl_same(private + page, page, 5, "a page of a private mapping that follows the memfd");
	wl_end(pid);
	wl_same(shared + page, page, 11, "the child's store");
	wl_fill(text, 16, 0);
	CHECK(pread(open_one, text, 8, page) == 8 && *(uint64_t *)text == wl_word(11, 0), "not seen through the descriptor");
	MUST(fstat(open_one, &facts));
	CHECK(facts.st_size == 8 * page, "size is %ld", (long)facts.st_size);
	CHECK(fcntl(open_one, F_GETFD) == FD_CLOEXEC, "close-on-exec is lost");
	CHECK(fcntl(open_one, F_GET_SEALS) == 0, "seals are 0x%x", fcntl(open_one, F_GET_SEALS));
	MUST(fstat(never_mapped, &facts));
	CHECK(facts.st_size == 12345 && (facts.st_mode & 07777) == 0640, "size is %ld, mode 0%o", (long)facts.st_size, facts.st_mode);
	CHECK(fcntl(never_mapped, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK), "seals are 0x%x", fcntl(never_mapped, F_GET_SEALS));
	CHECK(lseek(never_mapped, 0, SEEK_CUR) == 7003, "position is lost");
	memset(text, 0, sizeof text);
	CHECK(read(never_mapped, text, 10) == 10 && !strcmp(text, "the middle"), "content is %s", text);
	MUST(readlink("/proc/self/fd/3", link, sizeof link - 1));
	CHECK(!strcmp(link, "/memfd:kept open (deleted)"), "called %s", link);
	wl_pass();
}
