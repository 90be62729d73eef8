// SPDX-License-Identifier: Apache-2.0
// A Java program that checks itself: threads that compute (the compiler works on them), that allocate (the collector
// works all the time), that wait in every way; a heap whose content follows from its numbers. Each line that a client
// sends is answered with "good COUNT" or with what is wrong.

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

public class Busy {
    static final int ENTRIES = 200_000;
    static final Map<Integer, long[]> heap = new HashMap<>();
    static final ByteBuffer direct = ByteBuffer.allocateDirect(4 << 20);
    static final AtomicLong rounds = new AtomicLong(), garbage = new AtomicLong(), ticks = new AtomicLong(), passed = new AtomicLong();
    static final AtomicReference<String> trouble = new AtomicReference<>();
    static final LinkedBlockingQueue<Long> queue = new LinkedBlockingQueue<>(100);

    static long mix(long x) {
        x ^= x >>> 33; x *= 0xff51afd7ed558ccdL; x ^= x >>> 33; x *= 0xc4ceb9fe1a85ec53L;
        return x ^ (x >>> 33);
    }

    interface Work { void once() throws Exception; }

    static void start(String name, Work work) {
        Thread thread = new Thread(() -> {
            try {
                while (true)
                    work.once();
            } catch (Throwable error) {
                trouble.compareAndSet(null, name + ": " + error);
            }
        }, name);
        thread.setDaemon(true);
        thread.start();
    }

    static void compute() throws Exception {
        double sum = 0;
        for (int i = 1; i <= 100_000; i++)
            sum += Math.sqrt(i) * (mix(i) & 1);
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(Double.toString(sum).getBytes());
        long head = ByteBuffer.wrap(digest).getLong();
        if (expected == 0)
            expected = head;
        else if (head != expected)
            throw new IllegalStateException("the same sum came out otherwise");
        rounds.incrementAndGet();
    }

    static volatile long expected;

    static void allocate() {
        List<byte[]> kept = new ArrayList<>();
        for (int i = 0; i < 500; i++) {
            byte[] block = new byte[10_000];
            block[i] = (byte) i;
            if (i % 10 == 0)
                kept.add(block);
        }
        for (int i = 0; i < kept.size(); i++)
            if (kept.get(i)[i * 10] != (byte) (i * 10))
                throw new IllegalStateException("a young object changed");
        garbage.incrementAndGet();
        Thread.yield();
    }

    static String check() {
        if (trouble.get() != null)
            return trouble.get();
        for (int i = 0; i < ENTRIES; i++) {
            long[] entry = heap.get(i);
            if (entry == null || entry[0] != mix(i) || entry[1] != i)
                return "the heap changed at " + i;
        }
        for (int i = 0; i < direct.capacity() / 8; i++)
            if (direct.getLong(i * 8) != mix(i))
                return "the direct buffer changed at " + i;
        return "good " + rounds + " " + garbage + " " + ticks + " " + passed;
    }

    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i < ENTRIES; i++)
            heap.put(i, new long[] {mix(i), i});
        for (int i = 0; i < direct.capacity() / 8; i++)
            direct.putLong(i * 8, mix(i));
        start("compute", Busy::compute);
        start("allocate", Busy::allocate);
        start("put", () -> { queue.put(passed.get()); Thread.sleep(1); });
        start("take", () -> { queue.take(); passed.incrementAndGet(); });
        ScheduledExecutorService clock = Executors.newScheduledThreadPool(2, task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        clock.scheduleAtFixedRate(ticks::incrementAndGet, 0, 5, TimeUnit.MILLISECONDS);
        start("await", () -> {
            CompletableFuture<Long> future = new CompletableFuture<>();
            clock.schedule(() -> future.complete(7L), 3, TimeUnit.MILLISECONDS);
            if (future.get() != 7L)
                throw new IllegalStateException("a future changed");
        });
        ServerSocket server = new ServerSocket(Integer.parseInt(arguments[0]), 50, InetAddress.getLoopbackAddress());
        System.out.println("ready");
        while (true) {
            Socket client = server.accept();
            Thread thread = new Thread(() -> serve(client));
            thread.setDaemon(true);
            thread.start();
        }
    }

    static void serve(Socket client) {
        try (client;
             BufferedReader in = new BufferedReader(new InputStreamReader(client.getInputStream()));
             PrintStream out = new PrintStream(client.getOutputStream(), true)) {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                if (line.equals("run")) { // a child process: posix_spawn through the JVM's helper
                    Process child = new ProcessBuilder("/bin/echo", "from a child").start();
                    out.println(new String(child.getInputStream().readAllBytes()).trim() + " " + child.waitFor());
                } else if (line.equals("collect")) {
                    System.gc();
                    out.println(check());
                } else if (line.equals("load")) { // a class that was not there before, from the module file
                    out.println(Class.forName("java.util.zip.CRC32C").getSimpleName() + " " + Path.of("/tmp").getFileSystem().isOpen());
                } else {
                    out.println(check());
                }
            }
        } catch (IOException error) {
            // the client is gone
        } catch (Exception error) {
            trouble.compareAndSet(null, "serve: " + error);
        }
    }
}
