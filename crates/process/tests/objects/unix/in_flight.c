// object: descriptors in flight in unix sockets (SCM_RIGHTS) that are not received, of every type of socket, in the middle of a stream
// status: captured
// note: also with credentials, several in a message, held by somebody else too or by nobody; refused: epoll instances, and what has an owner for signals
#include "unix/rights.h"
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

int main(void) {
    int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}, pairs[3][2], around[2], on = 1;
    int ends[3][2], file = open("/tmp/file", O_RDWR | O_CREAT, 0600), counter = eventfd(0, 0);
    CHECK(write(file, "0123456789", 10) == 10 && lseek(file, 4, SEEK_SET) == 4);
    CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, around));
    for (int i = 0; i < 3; i++) {
        CHECK(!socketpair(AF_UNIX, types[i], 0, pairs[i]) && !pipe(ends[i]));
        CHECK(!setsockopt(pairs[i][1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
        CHECK(send(pairs[i][0], "before", 6, 0) == 6);
        int several[] = {file, ends[i][1], 1, counter};
        give(pairs[i][0], "several", 7, several, 4, i != 0);
        CHECK(send(pairs[i][0], "after", 5, 0) == 5);
        // The writing ends are nowhere else.
        close(ends[i][1]);
        CHECK(write(ends[i][0], "x", 1) == -1 && errno == EBADF);
        fcntl(ends[i][0], F_SETFL, O_NONBLOCK);
    }
    // Of this it is the only descriptor.
    int removed = open("/tmp/removed", O_RDWR | O_CREAT, 0600);
    CHECK(write(removed, "removed", 7) == 7 && !unlink("/tmp/removed"));
    give(pairs[0][0], "last", 4, &removed, 1, 0);
    close(removed);
    ready();
    long rounds = 0;
    do {
        char byte;
        uint64_t one = 1;
        for (int i = 0; i < 3; i++) CHECK(read(ends[i][0], &byte, 1) == -1 && errno == EAGAIN);
        CHECK(write(counter, &one, 8) == 8);
        rounds++;
        // Some that are on their way for a moment.
        int passing[2], back;
        CHECK(!pipe(passing));
        give(around[1], "passing", 7, &passing[1], 1, 0);
        close(passing[1]);
        CHECK(take(around[0], "passing", 7, &back, 0) == 1);
        CHECK(write(back, "p", 1) == 1 && read(passing[0], &byte, 1) == 1 && byte == 'p');
        close(back);
        CHECK(read(passing[0], &byte, 1) == 0);
        close(passing[0]);
    } while (go_on());
    for (int i = 0; i < 3; i++) {
        int fds[MOST];
        struct ucred who = {0};
        char text[16];
        // The descriptors come with the first byte of their piece, not before.
        CHECK(recv(pairs[i][1], text, i ? 16 : 6, MSG_DONTWAIT) == 6 && !memcmp(text, "before", 6));
        CHECK(take(pairs[i][1], "several", 7, fds, &who) == 4);
        CHECK(who.pid == getpid() && who.uid == 0);
        CHECK(lseek(fds[0], 0, SEEK_CUR) == 4 + i && read(file, text, 1) == 1 && text[0] == '4' + i);
        struct stat out, own;
        CHECK(!fstat(fds[2], &out) && !fstat(1, &own) && out.st_ino == own.st_ino);
        uint64_t count = 0;
        if (i == 0) CHECK(read(fds[3], &count, 8) == 8 && (long)count == rounds);
        CHECK(write(fds[3], &count, 8) == 8);
        CHECK(write(fds[1], "now", 3) == 3 && read(ends[i][0], text, 8) == 3);
        close(fds[1]);
        CHECK(read(ends[i][0], text, 8) == 0);
        // A read of a stream goes on up to the next descriptors.
        int more = take(pairs[i][1], "afterlast", i ? 5 : 9, fds, 0);
        CHECK_EQUAL(more, !i);
        if (i) continue;
        struct stat gone;
        CHECK(pread(fds[0], text, 8, 0) == 7 && !memcmp(text, "removed", 7) && !fstat(fds[0], &gone) && !gone.st_nlink);
    }
    PASS();
}
