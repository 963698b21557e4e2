// object: a removed file of a scratch directory, mapped shared and written
// status: captured
// note: with its descriptor open and without; page by page
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define P 4096

static char *make(const char *path, int *fd) {
    *fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(*fd >= 0 && ftruncate(*fd, 50 * P) == 0);
    char *memory = mmap(0, 50 * P, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

int main(void) {
    int open_one, closed_one;
    char *one = make("/tmp/open", &open_one), *two = make("/tmp/closed", &closed_one);
    close(closed_one);
    CHECK(unlink("/tmp/closed") == 0);
    ready();
    static unsigned char said[50], written[50];
    unsigned step = 0;
    do {
        unsigned page = step * 7 % 50, other = step * 11 % 50;
        one[page * P + 5] = two[page * P + 5] = ++said[page];
        written[other]++;
        CHECK(pwrite(open_one, &written[other], 1, other * P + 6) == 1);
        // It loses its name on the way.
        if (step++ == 12) CHECK(unlink("/tmp/open") == 0);
    } while (go_on());
    struct stat stat;
    CHECK(fstat(open_one, &stat) == 0);
    CHECK_EQUAL(stat.st_nlink, step > 12 ? 0 : 1);
    CHECK_EQUAL(stat.st_mode & 0777, 0640);
    for (int at = 0; at < 50; at++) {
        unsigned char bytes[2];
        CHECK(pread(open_one, bytes, 2, at * P + 5) == 2);
        CHECK_EQUAL(bytes[0], said[at]);
        CHECK_EQUAL(bytes[1], written[at]);
        CHECK_EQUAL((unsigned char)two[at * P + 5], said[at]);
        CHECK_EQUAL((unsigned char)one[at * P + 6], written[at]);
    }
    one[3] = 'm';
    char byte;
    CHECK(pread(open_one, &byte, 1, 3) == 1 && byte == 'm');
    PASS();
}
