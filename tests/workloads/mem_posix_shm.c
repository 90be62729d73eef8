// SPDX-License-Identifier: Apache-2.0
/* POSIX shared memory: one that has its name still, one unlinked; both mapped by parent and child. */
/* wl: */
#include "wl.h"

enum { page = WL_PAGE, pages = 10 };
static char *named, *unlinked;

static void child(void *unused)
{
	(void)unused;
	wl_child_ready_wait();
	wl_same(named, page, 1, "the named one in the child");
	wl_same(unlinked, pages * page, 2, "the unlinked one in the child");
	wl_fill(named + page, page, 11);
	wl_fill(unlinked + page, page, 22);
	_exit(0);
}

int main(void)
{
	char name[64], link[128] = "", wanted[128];
	struct stat facts;
	wl_begin();
	snprintf(name, sizeof name, "/torpor-test-%d", getpid());
	int fd = MUST(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
	wl_say("owns file /dev/shm%s", name);
	MUST(ftruncate(fd, pages * page));
	named = MUST(mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	wl_fill(named, page, 1);
	snprintf(wanted, sizeof wanted, "%s-gone", name);
	int gone = MUST(shm_open(wanted, O_RDWR | O_CREAT | O_EXCL, 0640));
	MUST(ftruncate(gone, pages * page));
	unlinked = MUST(mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0));
	MUST(shm_unlink(wanted));
	wl_fill(unlinked, pages * page, 2);
	pid_t pid = wl_child(child, NULL);
	wl_ready_wait();
	wl_end(pid);
	wl_same(named + page, page, 11, "the child's store in the named one");
	wl_same(unlinked + page, page, 22, "the child's store in the unlinked one");
	MUST(fstat(gone, &facts));
	CHECK(facts.st_nlink == 0 && facts.st_size == pages * page && (facts.st_mode & 07777) == 0640, "links %ld, size %ld, mode 0%o",
	      (long)facts.st_nlink, (long)facts.st_size, facts.st_mode);
	snprintf(wanted, sizeof wanted, "/dev/shm%s-gone (deleted)", name);
	snprintf(name + strlen(name), sizeof name - strlen(name), "-gone");
	CHECK(shm_open(name, O_RDWR, 0) == -1 && errno == ENOENT, "the unlinked one has its name again");
	MUST(readlink("/proc/self/fd/3", link, sizeof link - 1));
	CHECK(!strcmp(link, wanted), "called %s, was %s", link, wanted);
	name[strlen(name) - 5] = 0;
	fd = MUST(shm_open(name, O_RDONLY, 0));
	MUST(shm_unlink(name));
	char *again = MUST(mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0));
	wl_same(again, page, 1, "the named one, opened again");
	wl_pass();
}
